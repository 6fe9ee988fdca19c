"""DARE: drop and rescale.

Yu et al., ICML 2024, arXiv 2311.03099, section 3.2. With drop rate p and m_t ~ Bernoulli(1 − p):
τ̂_t = m_t ⊙ τ_t / (1 − p), coordinate by coordinate.

Departure: 1 − p, the density, is rounded to a multiple of 2⁻¹⁶ (but not to 0), and the rest is rescaled by what
was really used, so that the mean of τ̂_t is τ_t.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from fusion.compiled import compiled
from fusion.device import compiles
from fusion.hyperparameters import Density
from fusion.methods._draws import LEVELS, draw, new_seed
from fusion.vectors import Layer, TaskVectors


def dare(taus: TaskVectors, *, rng: Generator, density: Density = 0.1) -> TaskVectors:
    """The task vectors with a random fraction `density` (1 − p) of their coordinates, divided by it."""
    return taus if density == 1 else taus.transform(partial(drop, new_seed(rng), density), coordinatewise=True)


def drop(seed: int, density: float, layer: Layer) -> Tensor:
    """τ̂ (T, *shape) of one layer or run, by draws that the seed makes."""
    count = max(1, round(density * LEVELS))
    limit, kept = count - LEVELS // 2, count / LEVELS
    found = torch.empty_like(layer.taus, memory_format=torch.contiguous_format)
    for tau, draws, out in zip(layer.taus, draw(seed, layer), found, strict=True):
        if compiles(tau.device):
            _drop(tau.reshape(-1).numpy(), draws.reshape(-1).numpy(), limit, kept, out.view(-1).numpy())
        else:
            torch.mul(tau, draws < limit, out=out).div_(kept)
    return found


@compiled
def _drop(tau: NDArray[Any], draws: NDArray[np.int16], limit: int, density: float, dropped: NDArray[Any]) -> None:
    """τ̂_t of one run: all (c,)."""
    zero, kept = tau.dtype.type(0), tau.dtype.type(density)
    for i in range(len(tau)):
        dropped[i] = tau[i] / kept if draws[i] < limit else zero
