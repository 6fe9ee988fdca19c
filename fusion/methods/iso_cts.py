"""Isotropic merging in common and task-specific subspaces (Iso-CTS).

Marczak et al., ICML 2025, arXiv 2502.04959, algorithm 2. For each matrix of rank r, with U_c Σ_c V_cᵀ the leading k
triples of Σ_t τ_t and U_t Σ_t V_tᵀ the leading (r − k)/T of (I − U_c U_cᵀ) τ_t, U = [U_c U_1 … U_T], V likewise and σ̄
the mean of all these singular values:  θ = θ0 + α σ̄ U⊥ V⊥ᵀ, where M⊥ is the polar factor of M. k is the common
fraction of r, rounded, as in the authors' code, so that T divides the rest. All other tensors are averaged.

Departure, as in iso_c: triples whose singular value is zero up to rounding are left out, so that a LoRA update
has no more directions than its rank. What is left of a task in the common subspace is zero too.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from fusion.hyperparameters import Fraction, Scaling
from fusion.methods._spectrum import Triples, each_leading, leading, polar, rounding, single_threaded
from fusion.vectors import Layer, Merged, TaskVectors


def iso_cts(taus: TaskVectors, *, rng: Generator, scaling: Scaling = 1.0, common_fraction: Fraction = 0.8) -> Merged:
    """The pre-trained model plus `scaling` (α) times a matrix with a flat spectrum in common and own directions.

    common_fraction: the part of each matrix's rank that the leading directions of the sum take (k / r).
    """

    def update(layer: Layer) -> Tensor:
        is_matrix = layer.is_matrix
        return combine(layer.taus, common_fraction) if is_matrix else layer.taus.mean(0)

    return taus.map(update, scaling=scaling, batched=True)


@single_threaded
def combine(taus: Tensor, common_fraction: float) -> Tensor:
    """σ̄ U⊥ V⊥ᵀ of one layer: (T, m, n) -> (m, n)."""
    rank, tasks = min(taus.shape[-2:]), len(taus)
    each = min(round((rank - int(rank * common_fraction)) / tasks), rank // tasks)
    shared = rank - each * tasks
    triples = [leading(taus.sum(0), shared)] if shared else []
    if each:
        common = triples[0].u if shared else taus[0, ..., :0]
        triples += own(taus, common, each)
    if not triples:
        return taus.sum(0)
    u, s, v = (torch.cat(parts, dim=-1) for parts in zip(*triples, strict=True))
    mean = s.sum(-1) / (s > 0).sum(-1).clamp(min=1)
    return mean[..., None, None] * (polar(u) @ polar(v).mT)


def own(taus: Tensor, common: Tensor, count: int) -> Iterator[Triples]:
    """The leading triples of each τ_t (m, n) outside the span of U_c (m, k), without what is rounding of τ_t itself."""
    outside = each_leading((tau - common @ (common.mT @ tau) for tau in taus), count, taus)
    for tau, triples in zip(taus, outside, strict=True):
        norm = torch.linalg.vector_norm(tau, dim=(-2, -1))
        yield triples.only(triples.s > rounding(tau) * norm[..., None])
