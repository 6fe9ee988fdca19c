"""Task singular vectors, merging (TSV-M).

Gargiulo et al., CVPR 2025, arXiv 2412.00081, algorithm 1. For each matrix, with τ_t = U_t Σ_t V_tᵀ cut to its
leading ⌊r/T⌋ triples and U = [U_1 … U_T], Σ = diag(Σ_1 … Σ_T), V = [V_1 … V_T]:  θ = θ0 + α U⊥ Σ V⊥ᵀ, where M⊥
is the nearest matrix with orthonormal columns (the polar factor of M). All other tensors are averaged, convolution
kernels too, as in the authors' code (which averages one matrix more, CLIP's `text_projection`).

Departure: triples whose singular value is zero up to rounding are left out. A LoRA update of rank 16 has no more
than 16 directions; the paper's ⌊r/T⌋ would fill up with arbitrary ones, which U⊥ and V⊥ would then honour.
"""

import torch
from torch import Generator, Tensor

from fusion.hyperparameters import Scaling
from fusion.methods._spectrum import each_leading, polar
from fusion.parallel import workers
from fusion.vectors import Layer, Merged, TaskVectors

ROWS = 256  # of a product computed at a time


def tsv_m(taus: TaskVectors, *, rng: Generator, scaling: Scaling = 1.0) -> Merged:
    """The pre-trained model plus `scaling` (α) times the tasks' decorrelated leading singular directions."""

    def update(layer: Layer) -> Tensor:
        if not layer.is_matrix:
            return layer.taus.mean(0)
        left, right, _ = decorrelate(layer.taus)
        with workers(left.device) as each:
            return torch.cat(list(each(lambda rows: rows @ right.mT, left.split(ROWS, dim=-2))), dim=-2)

    def parts(layer: Layer) -> Tensor:
        if not layer.is_matrix:
            return layer.taus / len(layer.taus)
        left, right, counts = decorrelate(layer.taus)
        with workers(left.device) as each:
            pairs = zip(left.split(counts, dim=1), right.split(counts, dim=1), strict=True)
            return torch.stack(list(each(lambda pair: pair[0] @ pair[1].mT, pairs)))

    return taus.map(update, scaling=scaling, parts=parts, batched=True)


def decorrelate(taus: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """U⊥ Σ (m, k) and V⊥ (n, k) of one layer, (T, m, n), and how many of the k columns are of each task."""
    count = max(1, min(taus.shape[-2:]) // len(taus))
    triples = list(each_leading(taus, count, taus))
    u, s, v = (torch.cat(parts, dim=-1) for parts in zip(*triples, strict=True))
    with workers(taus.device) as each:
        left, right = each(polar, (u, v))
    return left * s[..., None, :], right, [task.s.shape[-1] for task in triples]
