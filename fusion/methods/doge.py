"""DOGE (on task arithmetic): merging as adaptive projective gradient descent.

Wei et al., ICML 2025, arXiv 2501.01230, algorithm 1. For each matrix, λ_t = η / ‖τ_t‖, and one modification Δ for all
tasks is learned so that along each row i of each τ_j the merged update equals τ_j itself:

    min_Δ Σ_j Σ_i ⟨τ_j, τ_j − Σ_t λ_t (τ_t + Δ)⟩_i²,  by Adam from Δ = 0 on the gradient (I − B Bᵀ) ∇,

B the shared subspace: of [U_1 … U_T], the leading ⌊r/T⌋ left singular vectors of every task, the leading ⌊r / 6⌋
ones. Then θ = θ0 + Σ_t λ_t m_t ⊙ (τ_t + Δ), m_t the mask of τ_t's largest coordinates. All other tensors are averaged.

The inner product by rows, 400 steps at 1e-4, and the mask by the 30 % largest |τ_t| of the model are those of the
authors' code, which takes the encoder's weights alone, the 30 % of those, and leaves all other tensors at θ0.
Singular triples that are zero up to rounding are left out.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from fusion.hyperparameters import Density, Rate, Scaling, Steps
from fusion.methods._adam import descend
from fusion.methods._spectrum import each_leading, leading
from fusion.methods.ties import global_thresholds
from fusion.vectors import Layer, Merged, TaskVectors


def doge(
    taus: TaskVectors,
    *,
    rng: Generator,
    density: Density = 0.3,
    scaling: Scaling = 0.07,
    subspace: Annotated[int, Field(ge=1)] = 6,
    steps: Steps = 400,
    lr: Rate = 1e-4,
) -> Merged:
    """The pre-trained model plus the modified and trimmed task vectors, each of length `scaling` (η) in each layer.

    density: fraction of coordinates kept per task, of the whole model. scaling: η, which the loss depends on too.
    subspace: the shared subspace has a rank of one in so many. lr: Adam's, absolute, as task vectors are.
    """
    limits = global_thresholds(taus, density)

    def update(layer: Layer) -> Tensor:
        if not layer.is_matrix:
            return layer.taus.mean(0)
        size = largest_of_all(layer.taus)
        rows = torch.empty_like(layer.taus.movedim(0, -2), memory_format=torch.contiguous_format)
        unit = torch.div(layer.taus, size, out=rows.movedim(-2, 0))  # squares neither overflow nor vanish
        norms = torch.linalg.vector_norm(unit, dim=(-2, -1), keepdim=True, dtype=torch.float64)
        weights = torch.where(norms > 0, scaling / norms, 0)
        delta = modification(rows, weights, size.double(), shared_subspace(unit, subspace), steps, lr) / size
        found = torch.zeros_like(delta)
        for weight, one, tau, limit in zip(weights.to(unit.dtype), unit, layer.taus, limits, strict=True):
            found += weight * (one + delta) * (tau.abs().to(limits.dtype) >= limit)
        return found

    return taus.map(update, batched=True)


def largest_of_all(taus: Tensor) -> Tensor:
    """The largest magnitude of all tasks in a matrix, (T, ..., m, n) -> (..., 1, 1); 1 where all is zero."""
    if taus.numel() == 0:
        return taus.new_ones(*taus.shape[1:-2], 1, 1)
    ends = taus.amin((0, -2, -1)).neg(), taus.amax((0, -2, -1))
    found = torch.maximum(*ends)[..., None, None]
    return found.where(found > 0, 1)


def shared_subspace(taus: Tensor, subspace: int) -> Tensor:
    """B: (T, ..., m, n) -> (..., m, k) with orthonormal columns."""
    rank = min(taus.shape[-2:])
    of_each, of_all = rank // len(taus), rank // subspace
    if not of_each or not of_all:
        return taus[0, ..., :0]
    return leading(torch.cat([one.u for one in each_leading(taus, of_each, taus)], dim=-1), of_all).u


def modification(rows: Tensor, weights: Tensor, size: Tensor, basis: Tensor, steps: int, lr: float) -> Tensor:
    """Δ (..., m, n), in the units of τ_t = size · x_t, for λ_t = weights_t / size; rows: x by rows, (..., m, T, n).

    weights: (T, ..., 1, 1) and size: (..., 1, 1), in float64. The residuals are
    size² ⟨x_j, x_j⟩ − size ⟨x_j, Σ_t w_t x_t⟩ − W ⟨x_j, Δ⟩ with w = weights, W = Σ_t w_t, and the gradient
    −2 W Σ_j residual_j x_j. Adam sees it divided by a constant, and its ε too: the same steps, but in the range of
    float32.
    """
    total = (weights.to(rows.dtype).movedim(0, -1) @ rows)[..., 0, :]  # (..., m, n)
    own = torch.linalg.vector_norm(rows, dim=-1).square().double()  # (..., m, T)
    start, weight = size**2 * own - size * products(rows, total).double(), weights.sum(0)
    constant = 2 * weight * (start.abs().amax((-2, -1), keepdim=True) if start.numel() else 0)
    constant = constant.where(constant > 0, 1)

    def gradient(delta: Tensor) -> Tensor:
        residuals = start - weight * products(rows, delta)
        slope = -((2 * weight / constant * residuals).to(rows.dtype)[..., None, :] @ rows)[..., 0, :]
        return slope - basis @ (basis.mT @ slope)

    epsilon = (1e-8 / constant).clamp(1e-30, 1e30).to(rows.dtype)
    return descend(torch.zeros_like(total), gradient, steps, lr, epsilon)


def products(rows: Tensor, others: Tensor) -> Tensor:
    """⟨x_ti, y_i⟩ of every row i: (..., m, T, n) and (..., m, n) -> (..., m, T)."""
    return (rows @ others[..., None])[..., 0]
