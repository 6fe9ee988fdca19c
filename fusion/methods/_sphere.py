"""Means on a sphere, from the inner products of the points alone.

Every such mean is Σ_t c_t x_t, and its coefficients c follow from the T × T inner products ⟨x_s, x_t⟩: a layer is
read twice, in runs, and all else is arithmetic on T numbers in float64, on the CPU wherever the layer is. The points
x_t are the task vectors τ_t (the sphere is centred on θ0) or the weights θ_t = θ0 + τ_t themselves (centred on zero).
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from fusion.vectors import Layer, Merged, TaskVectors, run_length

NO_DIRECTION = 1e-8  # length of the mean of unit vectors below which they cancel

Coefficients = Callable[[Tensor], Tensor]  # inner products (T, T) -> c (T,), both float64


def combine(taus: TaskVectors, origin: str, coefficients: Coefficients) -> Merged:
    """The model whose every layer is Σ_t c_t x_t, with x_t seen from `origin`, 'pretrained' or 'zero'."""
    return taus.map(partial(_combine, origin, coefficients))


def _combine(origin: str, coefficients: Coefficients, layer: Layer) -> Tensor:
    found = coefficients(inner_products(layer, origin)).to(layer.taus.device)
    runs = [found @ taus for _, taus in _runs(layer)]
    if origin == "zero":  # Σ c_t θ_t = θ0 + Σ c_t τ_t + (Σ c_t − 1) θ0, without subtracting near-equal weights
        runs = [run + (found.sum() - 1) * start for run, (start, _) in zip(runs, _runs(layer), strict=True)]
    return torch.cat(runs).to(layer.taus.dtype).reshape(layer.pretrained.shape)


def inner_products(layer: Layer, origin: str) -> Tensor:
    """⟨x_s, x_t⟩ of one layer in float64, where 1e30 has a square: (T, T), on the CPU."""
    total = torch.zeros(len(layer.taus), len(layer.taus), dtype=torch.float64, device=layer.taus.device)
    for start, taus in _runs(layer):
        points = taus + start if origin == "zero" else taus
        total += points @ points.T
    return total.cpu()


def cosines(products: Tensor) -> tuple[Tensor, Tensor]:
    """cos ∠(x_s, x_t) (T, T), zero where a point is, and the lengths ‖x_t‖ (T,)."""
    lengths = products.diagonal().sqrt()
    both = torch.outer(lengths, lengths)
    return torch.where(both > 0, products / both, 0).clamp(-1, 1), lengths


def mean_on_sphere(products: Tensor, steps: int) -> Tensor:
    """The c of the equally weighted mean direction, times the mean length: (T, T) -> (T,).

    steps: of Riemannian gradient descent towards the Karcher mean, from the direction of Σ_t x_t / ‖x_t‖; with
    none, that direction it is. Where these unit vectors cancel there is no mean direction: the arithmetic mean.
    """
    cosine, lengths = cosines(products)
    share = (lengths > 0).to(lengths) / (lengths > 0).sum().clamp(min=1)
    norm = _norm(share, cosine)
    if norm < NO_DIRECTION:
        return torch.full_like(lengths, 1 / len(lengths))
    mean = share / norm
    for _ in range(steps):
        mean = _descend(mean, share, cosine)
    return torch.where(lengths > 0, lengths.mean() * mean / lengths, 0)


def _descend(mean: Tensor, share: Tensor, cosine: Tensor) -> Tensor:
    """One step exp_m(Σ_t w_t log_m(u_t)), points given by their coefficients of the unit vectors u_t."""
    dots = (cosine @ mean).clamp(-1, 1)
    angles = dots.acos()
    pull = share * torch.where(angles.sin() > 1e-12, angles / angles.sin(), 1)
    tangent = pull - (pull @ dots) * mean
    length = _norm(tangent, cosine)
    moved = length.cos() * mean + torch.sinc(length / torch.pi) * tangent
    return moved / _norm(moved, cosine)


def _norm(coefficients: Tensor, cosine: Tensor) -> Tensor:
    return (coefficients @ cosine @ coefficients).clamp(min=0).sqrt()


def _runs(layer: Layer) -> Iterator[tuple[Tensor, Tensor]]:
    """θ0 (c,) and τ (T, c) in float64, in runs that fit in a core's cache; one empty run of an empty layer."""
    most = max(1, run_length(len(layer.taus), layer.taus.device) // 8)  # twice the bytes, and for every task its own
    size = layer.pretrained.numel()
    start, taus = layer.pretrained.reshape(size), layer.taus.reshape(len(layer.taus), size)
    for first in range(0, max(size, 1), most):
        yield start[first : first + most].double(), taus[:, first : first + most].double()
