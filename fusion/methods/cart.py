"""Centred arithmetic with rank-reduced task vectors (CART).

Choi et al., 2024, arXiv 2412.12153, section 4. For each matrix, with θ̄ = mean_t θ_t and SVD_k the leading k triples:
θ = θ̄ + λ Σ_t SVD_k(θ_t − θ̄). All other tensors are averaged: their centred task vectors sum to zero.
"""

import math

from torch import Generator, Tensor

from fusion.hyperparameters import Density, Scaling
from fusion.methods._spectrum import each_leading, single_threaded
from fusion.vectors import Layer, Merged, TaskVectors


def cart(taus: TaskVectors, *, rng: Generator, scaling: Scaling = 1.0, rank_fraction: Density = 0.08) -> Merged:
    """The mean of the models plus `scaling` (λ) times what the leading directions of each add to it.

    rank_fraction: the part of each matrix's min(m, n) directions that are kept (k), rounded up. With all of them,
    or with λ = 0, this is the mean.
    """

    @single_threaded
    def update(layer: Layer) -> Tensor:
        mean = layer.taus.mean(0)
        if not layer.is_matrix:
            return mean
        count = max(1, math.ceil(rank_fraction * min(mean.shape[-2:]) - 1e-6))  # 0.28 · 25 = 7.000…1
        found = mean.clone()
        for u, s, v in each_leading((tau - mean for tau in layer.taus), count, mean):
            found += scaling * (u * s[..., None, :]) @ v.mT
        return found

    return taus.map(update, batched=True)
