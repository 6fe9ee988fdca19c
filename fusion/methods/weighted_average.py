"""Weighted averaging of fine-tuned weights.

Matena and Raffel, NeurIPS 2022, arXiv 2111.09832, section 2 (isotropic merging), with given weights:
θ = θ0 + Σ_t w_t τ_t,  Σ_t w_t = 1.
"""

import math

import torch
from torch import Generator, Tensor

from fusion.vectors import Layer, Merged, TaskVectors


def weighted_average(taus: TaskVectors, *, rng: Generator, weights: list[float] | None = None) -> Merged:
    """The average of the fine-tuned models with `weights` (w), one a task in their order; equal if not given.

    ValueError unless there is one weight a task and they sum to 1. A configuration row reads a list as a grid,
    so it gives one choice of weights as [[0.5, 0.25, 0.25]].
    """
    count = len(taus)
    given = [1 / count] * count if weights is None else weights
    if len(given) != count or not math.isclose(math.fsum(given), 1, abs_tol=1e-6):
        raise ValueError(f"got weights {given}, expected {count}, one a task, that sum to 1")

    def update(layer: Layer) -> Tensor:
        return torch.tensordot(torch.tensor(given).to(layer.taus), layer.taus, dims=1)

    def parts(layer: Layer) -> Tensor:
        return torch.stack([weight * tau for weight, tau in zip(given, layer.taus, strict=True)])

    return taus.map(update, coordinatewise=True, parts=parts)
