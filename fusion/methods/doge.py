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
from fusion.methods._spectrum import each_leading, leading
from fusion.methods.ties import global_thresholds
from fusion.thresholds import largest
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
        size = largest(layer.taus)
        if layer.pretrained.dim() != 2 or size == 0:
            return layer.taus.mean(0)
        rows = torch.empty_like(layer.taus.transpose(0, 1), memory_format=torch.contiguous_format)
        unit = torch.div(layer.taus, size, out=rows.transpose(0, 1))  # squares neither overflow nor vanish
        norms = torch.linalg.vector_norm(unit, dim=(1, 2), dtype=torch.float64).tolist()
        weights = torch.tensor([scaling / norm if norm else 0.0 for norm in norms], dtype=torch.float64)
        basis = shared_subspace(unit, subspace)
        delta = modification(rows, weights, size, basis, steps, lr) / size
        found = torch.zeros_like(delta)
        for weight, one, tau, limit in zip(weights.tolist(), unit, layer.taus, limits, strict=True):
            found += weight * (one + delta) * (tau.abs().to(limits.dtype) >= limit)
        return found

    return taus.map(update)


def shared_subspace(taus: Tensor, subspace: int) -> Tensor:
    """B: (T, m, n) -> (m, k) with orthonormal columns."""
    rank = min(taus.shape[1:])
    of_each, of_all = rank // len(taus), rank // subspace
    if not of_each or not of_all:
        return taus.new_zeros(taus.shape[1], 0)
    return leading(torch.cat([one.u for one in each_leading(taus, of_each, taus)], dim=1), of_all).u


def modification(rows: Tensor, weights: Tensor, size: float, basis: Tensor, steps: int, lr: float) -> Tensor:
    """Δ (m, n), in the units of τ_t = size · x_t, for λ_t = weights_t / size; rows: x by rows, (m, T, n).

    The residuals are size² ⟨x_j, x_j⟩ − size ⟨x_j, Σ_t w_t x_t⟩ − W ⟨x_j, Δ⟩ with w = weights, W = Σ_t w_t,
    and the gradient −2 W Σ_j residual_j x_j. Adam sees it divided by a constant, and its ε too: the same steps, but
    in the range of float32.
    """
    total = weights.to(rows) @ rows  # (m, n)
    own, others = torch.linalg.vector_norm(rows, dim=2).square().double(), (rows @ total[:, :, None])[:, :, 0].double()
    start, weight = size**2 * own - size * others, weights.sum().item()  # (m, T)
    delta, constant = torch.zeros_like(total), 2 * weight * start.abs().max().item()
    if constant == 0:
        return delta
    adam = torch.optim.Adam([delta], lr=lr, eps=min(max(1e-8 / abs(constant), 1e-30), 1e30))
    for _ in range(steps):
        residuals = start - weight * (rows @ delta[:, :, None])[:, :, 0]
        gradient = -((2 * weight / constant * residuals).to(rows.dtype)[:, None, :] @ rows)[:, 0, :]
        delta.grad = gradient - basis @ (basis.T @ gradient)
        adam.step()
    return delta
