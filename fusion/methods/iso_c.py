"""Isotropic merging in the common subspace (Iso-C).

Marczak et al., ICML 2025, arXiv 2502.04959, algorithm 1. For each matrix, with the SVD Σ_t τ_t = U Σ Vᵀ and
σ̄ the mean of its singular values:  θ = θ0 + α σ̄ U Vᵀ. All other tensors are averaged.

Departure: the mean and the product run over the singular values that are not zero up to rounding. For full-rank
sums, the paper's case, that is the same; for LoRA it keeps arbitrary null directions out of the merged model.
"""

from torch import Generator, Tensor

from fusion.hyperparameters import Scaling
from fusion.methods._spectrum import svd
from fusion.vectors import Layer, Merged, TaskVectors


def iso_c(taus: TaskVectors, *, rng: Generator, scaling: Scaling = 1.0) -> Merged:
    """The pre-trained model plus `scaling` (α) times the sum of the task vectors with a flat spectrum."""

    def update(layer: Layer) -> Tensor:
        is_matrix = layer.pretrained.dim() == 2
        return flatten_spectrum(layer.taus.sum(0)) if is_matrix else layer.taus.mean(0)

    return taus.map(update, scaling=scaling)


def flatten_spectrum(matrix: Tensor) -> Tensor:
    """σ̄ U Vᵀ of U diag(σ) Vᵀ: (m, n) -> (m, n)."""
    u, s, v = svd(matrix)
    if len(s) == 0:
        return matrix
    return s.mean() * (u @ v.T)
