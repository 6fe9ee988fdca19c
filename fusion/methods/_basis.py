"""Merging in other coordinates: those that a basis made from all tasks gives each matrix."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from fusion.methods._draws import new_seed
from fusion.methods._spectrum import single_threaded
from fusion.methods.dare import drop
from fusion.methods.ties import elect, layer_thresholds
from fusion.thresholds import largest
from fusion.vectors import Layer, Merged, TaskVectors

ROUNDING = 1e-6  # of the largest coordinate


class Aligned(NamedTuple):
    """The task vectors of one matrix in a common basis: τ_t = left C_t rightᵀ."""

    coordinates: Tensor  # C: (T, k, l)
    left: Tensor  # (m, k)
    right: Tensor | None  # (n, l); None is the identity

    def back(self, merged: Tensor) -> Tensor:
        """left C rightᵀ: (k, l) -> (m, n)."""
        found = self.left @ merged
        return found if self.right is None else found @ self.right.T


def merge_aligned(
    taus: TaskVectors,
    align: Callable[[Tensor], Aligned],
    *,
    rng: Generator,
    inner: str,
    density: float,
    scaling: float,
    aggregation: str,
    scope: str,
) -> Merged:
    """The pre-trained model plus `scaling` times what `inner` makes of the coordinates; the rest is averaged.

    align: the task vectors of one matrix, (T, m, n), in a common basis; computed anew in every pass, of which
    the scope 'global' needs four. inner: 'ties', 'dare' (with task arithmetic), or 'task_arithmetic'.
    """
    seed = new_seed(rng)
    align = single_threaded(align)
    limits = _thresholds(taus, align, density) if inner == "ties" and scope == "global" else None

    @single_threaded
    def update(layer: Layer) -> Tensor:
        if layer.pretrained.dim() != 2:
            return layer.taus.mean(0)
        aligned = align(layer.taus)
        found = _without_rounding(aligned.coordinates)
        if inner == "dare":
            found = drop(seed, density, layer._replace(taus=found))
        if inner != "ties":
            return aligned.back(found.sum(0))
        thresholds = layer_thresholds(found, density) if limits is None else limits
        return aligned.back(elect(found, thresholds, aggregation))

    return taus.map(update, scaling=scaling)


def _thresholds(taus: TaskVectors, align: Callable[[Tensor], Aligned], density: float) -> Tensor:
    """The magnitude that a part `density` of all coordinates of a task exceed: (T,)."""
    sizes = [align(layer.taus).coordinates[0].numel() for layer in taus.layers() if layer.pretrained.dim() == 2]

    def coordinates(layer: Layer) -> Tensor:
        """C in the corner of a zero tensor of the layer's own shape, (T, *shape)."""
        if layer.pretrained.dim() != 2:
            return torch.zeros_like(layer.taus)
        found = _without_rounding(align(layer.taus).coordinates)
        rows, columns = layer.pretrained.shape
        return pad(found, (0, columns - found.shape[2], 0, rows - found.shape[1]))

    share = sum(sizes) / max(1, taus.count())  # zeros are no coordinates to keep a part of
    return taus.transform(coordinates).magnitude_thresholds(density * share)


def _without_rounding(coordinates: Tensor) -> Tensor:
    """C (T, k, l), in place, with zeros for what is zero but for rounding: a task's zero must not agree to a sign."""
    limit = ROUNDING * largest(coordinates)
    for one in coordinates:
        torch.hardshrink(one, limit, out=one)
    return coordinates
