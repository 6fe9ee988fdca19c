"""TALL masks: every task's part of one multi-task vector (multi-model).

Wang et al., ICML 2024, arXiv 2405.07813, equations 3 to 6. With τ_MTL = Σ_t τ_t and
m_t = 1[|τ_t| ≥ λ_t |τ_MTL − τ_t|], task t is served by  θ0 + m_t ⊙ τ_MTL.

The paper chooses each λ_t from 0.2, 0.3 … 0.6 on validation data; here one λ for all tasks is chosen so, or one a
task is given.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from fusion.methods.ties import exact_sum
from fusion.vectors import Layer, TaskModels, TaskVectors


def tall_mask(
    taus: TaskVectors, *, rng: Generator, threshold: Annotated[float, Field(ge=0)] | list[float] = 0.4
) -> TaskModels:
    """For every task the pre-trained model plus the coordinates of the task vectors' sum that the task wants.

    threshold: λ, or a list of one λ a task; the smaller, the more a task wants. Stored beside θ0 are the sum and one
    bit a task for every coordinate.
    """
    limits = per_task(threshold, len(taus))

    def update(task: int, layer: Layer) -> Tensor:
        total = exact_sum(layer.taus)
        return wanted(layer.taus[task], total, limits[task]).mul_(total).to(layer.taus.dtype)

    return TaskModels(taus, update, taus.count() + len(taus) * mask_parameters(taus), coordinatewise=True)


def per_task(threshold: float | list[float], count: int) -> list[float]:
    """λ_t of every task; ValueError where a list holds not one a task."""
    found: list[float] = threshold if isinstance(threshold, list) else [threshold] * count
    if len(found) != count or min(found) < 0:
        raise ValueError(f"got threshold {found}, expected one number, or {count}, one a task, none below 0")
    return found


def mask_parameters(taus: TaskVectors) -> int:
    """What one mask stores, in float32 numbers."""
    return -(-taus.count() // 32)


def wanted(tau: Tensor, total: Tensor, threshold: float) -> Tensor:
    """m_t of one task, 0 or 1: tau (*shape), total (*shape) float64 -> (*shape) float64."""
    rest = torch.sub(total, tau).abs_().mul_(threshold)
    return tau.abs().double().ge_(rest)
