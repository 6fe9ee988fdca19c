"""KnOTS: model merging with an SVD to tie the knots.

Stoica et al., ICLR 2025, arXiv 2410.19735, section 4. For each matrix, with the SVD [τ_1 … τ_T] = U Σ [V_1ᵀ … V_Tᵀ] of
the tasks side by side:  θ = θ0 + λ U Σ merge(V_1ᵀ … V_Tᵀ), where `merge` is another method. It is made for LoRA, where
the tasks share few directions; of full-rank task vectors, U only rotates the rows. All other tensors are averaged
(LoRA trains none).

Departures: `singular_values` chooses between the paper, which merges V_t, and the authors' code, which by its
published settings merges Σ V_t. Directions of zero singular value up to rounding are left out rather than those
below 1e-5.
"""

from typing import Literal

from torch import Generator, Tensor

from fusion.hyperparameters import Density, Scaling
from fusion.methods._basis import Aligned, merge_aligned
from fusion.methods._spectrum import leading
from fusion.vectors import Merged, TaskVectors


def knots(
    taus: TaskVectors,
    *,
    rng: Generator,
    inner: Literal["ties", "dare", "task_arithmetic"] = "ties",
    density: Density = 0.2,
    scaling: Scaling = 0.6,
    aggregation: Literal["mean", "sum"] = "mean",
    scope: Literal["global", "layer"] = "global",
    singular_values: Literal["basis", "coordinates"] = "basis",
) -> Merged:
    """The pre-trained model plus `scaling` (λ) times the tasks merged in their common left singular basis.

    inner: how the coordinates are merged; 'task_arithmetic' is linear and so the same as without a basis, 'dare' keeps
    a part `density` of them at random, divided by it, and adds those up. density, aggregation, scope: those of ties, of
    the coordinates. singular_values: whether Σ belongs to the basis, U Σ and V_t (the paper), or to the coordinates, U
    and Σ V_t (the authors' code). The default scaling and density are theirs for ViT-B/32 of rank 16, with
    'coordinates'.
    """

    def align(taus: Tensor) -> Aligned:
        tasks, m, n = taus.shape
        u, s, v = leading(taus.permute(1, 0, 2).reshape(m, tasks * n), m).counted()
        right = v.T.reshape(len(s), tasks, n).transpose(0, 1)
        if singular_values == "basis":
            return Aligned(right.contiguous(), u * s, None)
        return Aligned(right * s[:, None], u, None)

    return merge_aligned(
        taus, align, rng=rng, inner=inner, density=density, scaling=scaling, aggregation=aggregation, scope=scope
    )
