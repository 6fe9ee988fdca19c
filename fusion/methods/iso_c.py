"""Isotropic merging in the common subspace (Iso-C).

Marczak et al., ICML 2025, arXiv 2502.04959, algorithm 1. For each matrix, with the SVD Σ_t τ_t = U Σ Vᵀ and
σ̄ the mean of its singular values:  θ = θ0 + α σ̄ U Vᵀ. All other tensors are averaged, convolution kernels too, as
in the authors' code.

Departure: the mean and the product run over the singular values that are not zero up to rounding. For full-rank
sums, the paper's case, that is the same; for LoRA it keeps arbitrary null directions out of the merged model.
"""

import torch
from torch import Generator, Tensor

from fusion.hyperparameters import Scaling
from fusion.methods._spectrum import polar, single_threaded
from fusion.vectors import Layer, Merged, TaskVectors


def iso_c(taus: TaskVectors, *, rng: Generator, scaling: Scaling = 1.0) -> Merged:
    """The pre-trained model plus `scaling` (α) times the sum of the task vectors with a flat spectrum."""

    def update(layer: Layer) -> Tensor:
        (total,) = layer.taus
        return flatten_spectrum(total) if layer.is_matrix else total / len(taus)

    summed = taus.transform(lambda run: run.taus.sum(0, keepdim=True), coordinatewise=True, count=1)
    return summed.map(update, scaling=scaling, batched=True)


@single_threaded
def flatten_spectrum(matrix: Tensor) -> Tensor:
    """σ̄ U Vᵀ of U diag(σ) Vᵀ: (m, n) -> (m, n)."""
    factor = polar(matrix)
    rank = factor.square().sum((-2, -1), keepdim=True).round().clamp(min=1)  # U Vᵀ has as many singular values of 1
    total = (factor * matrix).sum((-2, -1), keepdim=True, dtype=torch.float64)  # Σ σ = tr (U Vᵀ)ᵀ M
    return factor * (total / rank).to(matrix.dtype)
