"""Consensus merging: only the coordinates that several tasks want.

Wang et al., ICML 2024, arXiv 2405.07813, equation 6 and section 5. With τ_MTL = Σ_t τ_t and the TALL masks
m_t = 1[|τ_t| ≥ λ_t |τ_MTL − τ_t|]:  θ = θ0 + α · 1[Σ_t m_t ≥ k] ⊙ τ_MTL.

The paper chooses each λ_t from 0.2, 0.3 … 0.6 by the validation accuracy of `tall_mask`; here one λ for all tasks is
chosen so, or one a task is given. α is chosen as for task arithmetic.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from fusion.hyperparameters import Scaling
from fusion.methods.tall_mask import per_task, wanted
from fusion.methods.ties import exact_sum
from fusion.vectors import Layer, Merged, NotApplicable, TaskVectors


def consensus(
    taus: TaskVectors,
    *,
    rng: Generator,
    agreement: Annotated[int, Field(ge=0)] = 2,
    threshold: Annotated[float, Field(ge=0)] | list[float] = 0.4,
    scaling: Scaling = 0.3,
) -> Merged:
    """The pre-trained model plus `scaling` (α) times the task vectors' sum where enough tasks want it.

    agreement: how many tasks (k) must want a coordinate; 1 drops those that none wants, 0 drops nothing. threshold:
    λ, or a list of one λ a task; the smaller, the more a task wants.
    """
    limits = per_task(threshold, len(taus))
    if agreement > len(taus):
        raise NotApplicable(f"asks for the agreement of {agreement} tasks, and there are {len(taus)}")

    def agreed(layer: Layer, total: Tensor) -> Tensor:
        """1[Σ_t m_t ≥ k], in the type of τ_MTL, `total`."""
        votes = torch.zeros_like(total)
        for tau, limit in zip(layer.taus, limits, strict=True):
            votes += wanted(tau, total, limit)
        return votes.ge_(agreement)

    def update(layer: Layer) -> Tensor:
        total = exact_sum(layer.taus)
        return agreed(layer, total).mul_(total).to(layer.taus.dtype)

    def parts(layer: Layer) -> Tensor:
        return layer.taus * agreed(layer, exact_sum(layer.taus)).to(layer.taus.dtype)

    return taus.map(update, scaling=scaling, coordinatewise=True, parts=parts)
