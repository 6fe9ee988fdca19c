"""DELLA: drop with a probability that falls with the magnitude, and rescale (MAGPRUNE).

Deep, Bhardwaj and Poria, 2024, arXiv 2406.11617, section 3.1. In each row of a matrix, with r_i in 0 … n − 1 the
rank of |τ_i| among its n coordinates, drop with  p_i = p + ε/2 − ε r_i / (n − 1)  and divide the rest by 1 − p_i.
Elect and merge are those of TIES: `della + ties` with ties.density 1.

As in the authors' code the ranks are divided by n − 1, so that p is the mean of the p_i, and ε is the width of the
whole window (others call half of it ε). The defaults are those of the authors' example, drop rate 0.3 and window
0.14. Departures: 1 − p_i is rounded to a multiple of 2⁻¹⁶; a tensor of more than two dimensions has the rows of its
out × rest matrix, a vector is one row.
"""

from typing import Literal

import torch
from torch import Generator, Tensor

from fusion.hyperparameters import Density, Fraction
from fusion.methods._draws import LEVELS, draw, new_seed
from fusion.vectors import Layer, TaskVectors


def della(
    taus: TaskVectors,
    *,
    rng: Generator,
    density: Density = 0.7,
    epsilon: Fraction = 0.14,
    scope: Literal["row", "layer"] = "row",
) -> TaskVectors:
    """The task vectors with a random fraction `density` (1 − p) of their coordinates, mostly large ones, rescaled.

    epsilon: how much likelier the largest coordinate of a row, or layer, is kept than the smallest. ValueError where
    a probability would leave (0, 1]; a density of 1 keeps everything.
    """
    if density == 1:
        return taus
    if density - epsilon / 2 <= 0 or density + epsilon / 2 > 1:
        raise ValueError(f"got density {density} and epsilon {epsilon}, expected density ± epsilon / 2 within (0, 1]")
    seed = new_seed(rng)

    def drop(layer: Layer) -> Tensor:
        found = torch.empty_like(layer.taus)
        for tau, draws, out in zip(layer.taus, draw(seed, layer), found, strict=True):
            counts = (keep_probabilities(tau, density, epsilon, scope) * LEVELS).round_().clamp_(min=1)
            survives = draws.to(tau).lt_(counts - LEVELS // 2)
            torch.mul(survives, tau, out=out).div_(counts / LEVELS)
        return found

    return taus.transform(drop)


def keep_probabilities(tau: Tensor, density: float, epsilon: float, scope: str) -> Tensor:
    """1 − p_i of one task vector, rising with the rank of |τ_i| in its row or layer: (*shape) -> (*shape)."""
    is_one_row = scope == "layer" or tau.dim() < 2 or tau.numel() == 0
    rows = tau.abs().reshape(1, -1) if is_one_row else tau.abs().flatten(1)
    last = rows.shape[1] - 1
    if last <= 0:
        return torch.full_like(tau, density)
    ranks = torch.arange(last + 1, dtype=tau.dtype, device=tau.device).expand_as(rows)
    order = rows.argsort(dim=1, stable=True)
    found = torch.empty_like(rows).scatter_(1, order, ranks)
    return found.div_(last).sub_(0.5).mul_(epsilon).add_(density).reshape(tau.shape)
