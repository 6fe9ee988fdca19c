"""Tangent projection: task vectors weighted by how well their nearest neighbours explain them.

As in the code of Tang et al., ICLR 2024, arXiv 2310.04742 (github.com/tanganke/peta, evaluate_multi_task_lm.py; the
paper has no results of it), after Kim, AAAI 2024, "Robust distributed gradient aggregation using projections onto
gradient manifolds", with task vectors for gradients:
θ = θ0 + Σ_t w_t τ_t,  w_t ∝ exp(−a_t / mean a),  a_t = ‖τ_t − P_t τ_t‖²,
where P_t projects onto the span of the task vectors nearest to τ_t. Tasks that lie far from the others count less.

The code averages 20 rounds without drawing anything in them, so one is the same. All is computed from the T × T
products of the task vectors; where all a_t are 0 they are averaged.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from fusion.methods.adamerging import weighted_sum
from fusion.vectors import Layer, Merged, TaskVectors


def tangent_projection(taus: TaskVectors, *, rng: Generator, neighbors: Annotated[int, Field(ge=1)] = 1) -> Merged:
    """The pre-trained model plus a weighted mean of the task vectors, those that stand apart counting less.

    neighbors: how many of the nearest other task vectors (in Euclidean distance) span what one is projected onto.
    The diagnostics hold the weights.
    """

    def products(run: Layer) -> Tensor:
        vectors = run.taus.reshape(len(run.taus), -1).double()
        return vectors @ vectors.T

    weights = projection_weights(taus.reduce(products, len(taus), len(taus)).cpu(), neighbors)
    diagnostics = {"coefficients": {"all": weights.tolist()}}
    return taus.map(lambda layer: weighted_sum(weights, layer), diagnostics, coordinatewise=True)


def projection_weights(products: Tensor, neighbors: int) -> Tensor:
    """w from the scalar products of the task vectors: (T, T) float64 -> (T,)."""
    squares = products.diagonal()
    distances = squares + squares[:, None] - 2 * products
    distances.fill_diagonal_(torch.inf)
    nearest = distances.argsort(dim=1, stable=True)[:, : min(neighbors, len(products) - 1)]
    apart = torch.stack([_residual(products, t, nearest[t]) for t in range(len(products))])
    if not apart.any():
        return torch.full_like(apart, 1 / len(apart))
    return (-apart / apart.mean()).softmax(0)


def _residual(products: Tensor, task: int, nearest: Tensor) -> Tensor:
    """‖τ_t − P τ_t‖² for P onto the span of the nearest; 0 for a single task, which none can explain."""
    if len(nearest) == 0:
        return products.new_zeros(())
    inner = products[nearest][:, nearest]
    along = products[nearest, task]
    explained = along @ torch.linalg.pinv(inner, hermitian=True) @ along
    return (products[task, task] - explained).clamp(min=0)
