"""WUDI-merging: the merged task vector that interferes least with every task's own inputs.

Cheng et al., ICML 2025, arXiv 2503.08099, algorithm 1. A matrix's task vector spans, by rows, about the inputs that
the task was fine-tuned on, so for each matrix, with Ĝ_t = τ_tᵀ τ_t / ‖τ_t‖²:

    min_τ Σ_t ‖(τ − τ_t) τ_tᵀ‖² / ‖τ_t‖²,  from Σ_t τ_t, by Adam;  its gradient is 2 (τ Σ_t Ĝ_t − Σ_t τ_t Ĝ_t).

The gradient vanishes at τ = (Σ_t τ_t Ĝ_t) (Σ_t Ĝ_t)⁺, solver 'closed_form'. All other tensors are averaged.

Departure: the closed form, which the paper does not use, leaves out directions below the rounding error of float32,
which it would amplify. It is where Adam would end, not where the paper's 300 short steps stop: in directions that
no task uses much these stay near Σ_t τ_t. The released text code has lr 2e-5 for the paper's 1e-5. The authors'
vision code takes the blocks' matrices alone and leaves all else at θ0; here every matrix is one.
"""

from typing import Literal

import torch
from torch import Generator, Tensor

from fusion.hyperparameters import Rate, Steps
from fusion.methods._adam import descend
from fusion.methods._spectrum import single_threaded
from fusion.vectors import Layer, Merged, TaskVectors


def wudi(
    taus: TaskVectors,
    *,
    rng: Generator,
    solver: Literal["adam", "closed_form"] = "adam",
    steps: Steps = 300,
    lr: Rate = 1e-5,
) -> Merged:
    """The pre-trained model plus the task vector of least interference.

    solver: 'adam', `steps` steps at rate `lr` (absolute, as task vectors are; the paper's), or 'closed_form'. For an
    m × n matrix either needs n × n numbers, and an Adam step one product by them whatever the number of tasks.
    """

    def update(layer: Layer) -> Tensor:
        if not layer.is_matrix:
            return layer.taus.mean(0)
        dtype = layer.taus.dtype
        if solver == "adam":
            gram, target = normal_equations(layer.taus, dtype)
            return descend(layer.taus.sum(0), lambda tau: 2 * (tau @ gram - target), steps, lr)
        noise = max(layer.pretrained.shape[-2:]) * torch.finfo(dtype).eps
        return solve(*normal_equations(layer.taus, torch.float64), noise**2).to(dtype)

    return taus.map(update, batched=solver == "adam")


def normal_equations(taus: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Σ_t Ĝ_t (..., n, n) and Σ_t τ_t Ĝ_t (..., m, n) of (T, ..., m, n), in that dtype."""
    norms = torch.linalg.vector_norm(taus, dim=(-2, -1), keepdim=True, dtype=torch.float64)  # 1e30 has no square
    norms = norms.where(norms > 0, 1).to(dtype)
    *batch, rows, columns = taus.shape[1:]
    gram, target = (taus.new_zeros(*batch, size, columns, dtype=dtype) for size in (columns, rows))
    for tau, norm in zip(taus, norms, strict=True):
        unit = tau.to(dtype) / norm
        own = unit.mT @ unit
        gram += own
        target += tau.to(dtype) @ own
    return gram, target


@single_threaded
def solve(gram: Tensor, target: Tensor, noise: float) -> Tensor:
    """τ = target · gram⁺, by the eigenvalues of gram above `noise` times the greatest: (m, n)."""
    if gram.numel() == 0:
        return target
    values, vectors = torch.linalg.eigh(gram)
    kept = values > noise * values[-1].clamp(min=0)
    vectors = vectors[:, kept]
    return (target @ vectors / values[kept]) @ vectors.T
