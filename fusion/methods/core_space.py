"""Core Space merging.

Panariello et al., NeurIPS 2025, arXiv 2509.17786, section 4. For each matrix, with τ_t = B_t A_t, U the left singular
vectors of [B_1 … B_T] and V the right ones of the stacked A_t:  θ = θ0 + λ U merge(Uᵀ τ_1 V, …, Uᵀ τ_T V) Vᵀ, where
`merge` is another method. It is made for LoRA, where the core matrices Uᵀ τ_t V are at most T times the rank wide. Of
full-rank task vectors, U and V are rotations of the whole space, and the SVDs that find them are slow. All other
tensors are averaged (LoRA trains none).

Departure: B_t = U_t √Σ_t and A_t = √Σ_t V_tᵀ of the SVD τ_t = U_t Σ_t V_tᵀ, which every task vector has, rather than
the factors that were trained. Both span the same spaces, so that nothing is lost either way; how the axes are turned
within them differs.
"""

from typing import Literal

import torch
from torch import Generator, Tensor

from fusion.hyperparameters import Density, Scaling
from fusion.methods._basis import Aligned, merge_aligned
from fusion.methods._spectrum import each_leading, leading
from fusion.vectors import Merged, TaskVectors


def core_space(
    taus: TaskVectors,
    *,
    rng: Generator,
    inner: Literal["ties", "dare", "task_arithmetic"] = "ties",
    density: Density = 0.3,
    scaling: Scaling = 0.6,
    aggregation: Literal["mean", "sum"] = "mean",
    scope: Literal["global", "layer"] = "layer",
) -> Merged:
    """The pre-trained model plus `scaling` (λ) times the tasks merged in their common left and right bases.

    inner: how the core matrices are merged; 'task_arithmetic' is linear and so the same as without bases, 'dare' keeps
    a part `density` of their entries at random, divided by it, and adds those up. density, aggregation, scope: those of
    ties, of the core matrices. The defaults are those of the authors' code.
    """
    return merge_aligned(
        taus, align, rng=rng, inner=inner, density=density, scaling=scaling, aggregation=aggregation, scope=scope
    )


def align(taus: Tensor) -> Aligned:
    """U, V and the core matrices Uᵀ τ_t V of one layer, (T, m, n)."""
    _, m, n = taus.shape
    left, right = taus.new_empty(m, 0), taus.new_empty(n, 0)
    for u, s, v in each_leading(taus, min(m, n), taus):
        left = narrowed(torch.cat([left, u * s.sqrt()], dim=1), 2 * m)
        right = narrowed(torch.cat([right, v * s.sqrt()], dim=1), 2 * n)
    left, right = narrowed(left, m), narrowed(right, n)
    left, right = leading(left, m).counted().u, leading(right, n).counted().u
    core = taus.new_empty(len(taus), left.shape[1], right.shape[1])
    for tau, one in zip(taus, core, strict=True):
        torch.matmul(left.T @ tau, right, out=one)
    return Aligned(core, left, right)


def narrowed(columns: Tensor, most: int) -> Tensor:
    """The columns (m, k); where k > `most`, m columns in their place with the same left singular triples."""
    return columns if columns.shape[1] <= most else torch.linalg.qr(columns.T, mode="r").R.T
