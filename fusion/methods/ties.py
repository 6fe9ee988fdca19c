"""TIES-merging: trim, elect sign, merge.

Yadav et al., NeurIPS 2023, arXiv 2306.01708, algorithm 1. With τ̂_t = τ_t trimmed to its largest coordinates and
γ = sgn(Σ_t τ̂_t):  θ = θ0 + λ · mean {τ̂_t : sgn τ̂_t = γ}, coordinate by coordinate.

Where Σ_t τ̂_t is exactly zero no sign is elected and the coordinate stays at θ0; the authors' code gives such
coordinates the sign of the majority of all others.
"""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from fusion.compiled import BLOCK, compiled
from fusion.device import compiles
from fusion.hyperparameters import Density, Scaling
from fusion.thresholds import kept
from fusion.vectors import Layer, Merged, TaskVectors

Array = NDArray[Any]


def ties(
    taus: TaskVectors,
    *,
    rng: Generator,
    density: Density = 0.2,
    scaling: Scaling = 1.0,
    aggregation: Literal["mean", "sum"] = "mean",
    scope: Literal["global", "layer"] = "global",
) -> Merged:
    """The pre-trained model plus `scaling` (λ) times the elected task vector.

    density: fraction of coordinates kept per task, of the whole model (scope 'global', as in the paper) or of
    every tensor by itself ('layer', as other implementations do). aggregation: how the coordinates that agree
    with the elected sign are joined; with 'sum' a scaling near 0.3 is usual. Coordinates of the same magnitude
    as the last one kept are kept too.
    """
    thresholds = global_thresholds(taus, density) if scope == "global" else None

    def limits(layer: Layer) -> Tensor:
        return layer_thresholds(layer.taus, density) if thresholds is None else thresholds

    return taus.map(
        lambda layer: elect(layer.taus, limits(layer), aggregation),
        scaling=scaling,
        coordinatewise=thresholds is not None,
        parts=lambda layer: agreeing(trim(layer.taus, limits(layer)), aggregation),
    )


def global_thresholds(taus: TaskVectors, density: float) -> Tensor:
    """The least magnitude kept of each task in the whole model: (T,); inf where none is.

    0 at a density of 1, which needs no look at the models.
    """
    return torch.zeros(len(taus), device=taus.device) if density == 1 else taus.magnitude_thresholds(density)


def layer_thresholds(taus: Tensor, density: float) -> Tensor:
    """The ⌊density · P_l⌋-th largest magnitude of each task in one layer: (T, *shape) -> (T,); inf where none.

    0 at a density of 1.
    """
    if density == 1:
        return taus.new_zeros(len(taus))
    size = taus[0].numel()
    keep = kept(density, size)
    if keep == 0:
        return taus.new_full((len(taus),), torch.inf)
    if not compiles(taus.device):
        return taus.abs().reshape(len(taus), size).kthvalue(size - keep + 1).values
    found = [np.partition(tau.abs().reshape(-1).numpy(), size - keep)[size - keep] for tau in taus]
    return torch.tensor(found, dtype=taus.dtype)


def trim(taus: Tensor, thresholds: Tensor) -> Tensor:
    """τ̂: (T, *shape) with the coordinates below their task's threshold (T,) set to zero."""
    if taus.dtype != torch.float32 or not compiles(taus.device):
        limits = thresholds.reshape(-1, *[1] * (taus.dim() - 1))
        magnitudes = taus.abs().to(limits.dtype)  # rounded as the thresholds are, or float64 loses the k-th
        return torch.where(magnitudes >= limits, taus, 0)
    trimmed = torch.empty_like(taus)
    below = torch.nextafter(thresholds, torch.tensor(0.0)).tolist()
    for tau, limit, out in zip(taus, below, trimmed, strict=True):
        torch.hardshrink(tau, limit, out=out)  # zero unless |τ| > limit; ten times faster than a comparison
    return trimmed


def elect(taus: Tensor, thresholds: Tensor, aggregation: str) -> Tensor:
    """The mean or sum over the tasks that agree with the elected sign, of task vectors trimmed at their thresholds.

    taus: (T, *shape); thresholds: (T,), in whose precision magnitudes are compared; the result: (*shape).
    """
    if not compiles(taus.device):
        return agreeing(trim(taus, thresholds), aggregation).sum(0)
    merged = torch.empty(taus.shape[1:], dtype=taus.dtype)
    flat = taus.detach().reshape(len(taus), -1).numpy()
    _elect(flat, thresholds.numpy(), aggregation == "mean", merged.view(-1).numpy())
    return merged


@compiled
def _elect(taus: Array, thresholds: Array, is_mean: bool, merged: Array) -> None:
    """`elect` of (T, c) into (c,): one block of coordinates of all tasks after the other, in the core's own cache."""
    zero, one, rounded = taus.dtype.type(0), taus.dtype.type(1), thresholds.dtype.type
    elected = np.empty(BLOCK, np.float64)  # Σ_t τ̂_t, as in `exact_sum`
    total, count = np.empty(BLOCK, taus.dtype), np.empty(BLOCK, taus.dtype)
    for start in range(0, taus.shape[1], BLOCK):
        size = min(BLOCK, taus.shape[1] - start)
        elected[:], total[:], count[:] = 0, 0, 0
        for t in range(len(taus)):
            tau, threshold = taus[t, start : start + size], thresholds[t]
            for i in range(size):
                elected[i] += tau[i] if rounded(abs(tau[i])) >= threshold else zero
        for t in range(len(taus)):
            tau, threshold = taus[t, start : start + size], thresholds[t]
            for i in range(size):
                agrees = ((tau[i] > 0) & (elected[i] > 0)) | ((tau[i] < 0) & (elected[i] < 0))
                agrees &= rounded(abs(tau[i])) >= threshold
                total[i] += tau[i] if agrees else zero
                count[i] += one if agrees else zero
        out = merged[start : start + size]
        for i in range(size):
            out[i] = total[i] / max(count[i], one) if is_mean else total[i]


def elected_sign(taus: Tensor) -> Tensor:
    """γ = sgn Σ_t τ_t: (T, *shape) -> (*shape)."""
    return exact_sum(taus).sign_().to(taus.dtype)


def exact_sum(taus: Tensor) -> Tensor:
    """Σ_t τ_t in float64, where 0.1 + 0.2 − 0.3 does not depend on the order of tasks: (T, *shape) -> (*shape)."""
    total = taus[0].to(torch.float64, copy=True)
    for tau in taus[1:]:
        total += tau
    return total


def agreeing(trimmed: Tensor, aggregation: str) -> Tensor:
    """The task vectors whose sum `elect` is: (T, *shape), zero where they disagree with the elected sign."""
    sign = elected_sign(trimmed)
    agree = (trimmed * sign).clamp_(min=0)
    count = agree.sign().sum(0).clamp_(min=1) if aggregation == "mean" else 1
    return agree.mul_(sign).div_(count)
