"""Task singular vectors, merging (TSV-M).

Gargiulo et al., CVPR 2025, arXiv 2412.00081, algorithm 1. For each matrix, with τ_t = U_t Σ_t V_tᵀ cut to its
leading ⌊r/T⌋ triples and U = [U_1 … U_T], Σ = diag(Σ_1 … Σ_T), V = [V_1 … V_T]:  θ = θ0 + α U⊥ Σ V⊥ᵀ, where M⊥
is the nearest matrix with orthonormal columns (the polar factor of M). All other tensors are averaged.

Departure: triples whose singular value is zero up to rounding are left out. A LoRA update of rank 16 has no more
than 16 directions; the paper's ⌊r/T⌋ would fill up with arbitrary ones, which U⊥ and V⊥ would then honour.
"""

import torch
from torch import Generator, Tensor

from fusion.hyperparameters import Scaling
from fusion.methods._spectrum import leading, polar
from fusion.vectors import Layer, Merged, TaskVectors


def tsv_m(taus: TaskVectors, *, rng: Generator, scaling: Scaling = 1.0) -> Merged:
    """The pre-trained model plus `scaling` (α) times the tasks' decorrelated leading singular directions."""

    def update(layer: Layer) -> Tensor:
        is_matrix = layer.pretrained.dim() == 2
        return decorrelate(layer.taus) if is_matrix else layer.taus.mean(0)

    return taus.map(update, scaling=scaling)


def decorrelate(taus: Tensor) -> Tensor:
    """U⊥ Σ V⊥ᵀ of one layer: (T, m, n) -> (m, n)."""
    count = max(1, min(taus.shape[1:]) // len(taus))
    triples = [leading(tau, count) for tau in taus]
    u, s, v = (torch.cat(parts, dim=-1) for parts in zip(*triples, strict=True))
    return (polar(u) * s) @ polar(v).T
