"""DELLA: drop with a probability that falls with the magnitude, and rescale (MAGPRUNE).

Deep, Bhardwaj and Poria, 2024, arXiv 2406.11617, section 3.1. In each row of a matrix, with r_i in 0 … n − 1 the
rank of |τ_i| among its n coordinates, drop with  p_i = p + ε/2 − ε r_i / (n − 1)  and divide the rest by 1 − p_i.
Elect and merge are those of TIES: `della + ties` with ties.density 1.

As in the authors' code the ranks are divided by n − 1, so that p is the mean of the p_i, and ε is the width of the
whole window (others call half of it ε). The defaults are those of the authors' example, drop rate 0.3 and window
0.14. Departures: 1 − p_i is rounded to a multiple of 2⁻¹⁶; a tensor of more than two dimensions has the rows of its
out × rest matrix, a vector is one row.
"""

from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from fusion.compiled import compiled
from fusion.device import compiles
from fusion.hyperparameters import Density, Fraction
from fusion.methods._draws import LEVELS, draw, new_seed
from fusion.vectors import Layer, TaskVectors

Array = NDArray[Any]


def della(
    taus: TaskVectors,
    *,
    rng: Generator,
    density: Density = 0.7,
    epsilon: Fraction = 0.14,
    scope: Literal["row", "layer"] = "row",
) -> TaskVectors:
    """The task vectors with a random fraction `density` (1 − p) of their coordinates, mostly large ones, rescaled.

    epsilon: how much likelier the largest coordinate of a row, or layer, is kept than the smallest. ValueError where
    a probability would leave (0, 1]; a density of 1 keeps everything.
    """
    if density == 1:
        return taus
    if density - epsilon / 2 <= 0 or density + epsilon / 2 > 1:
        raise ValueError(f"got density {density} and epsilon {epsilon}, expected density ± epsilon / 2 within (0, 1]")
    return taus.transform(partial(drop, new_seed(rng), density, epsilon, scope == "row"))


def drop(seed: int, density: float, epsilon: float, by_row: bool, layer: Layer) -> Tensor:
    """τ̂ (T, *shape) of one layer, by draws that the seed makes."""
    found = torch.empty(layer.taus.shape, dtype=layer.taus.dtype, device=layer.taus.device)
    if found.numel() == 0:
        return found
    columns = layer.pretrained[0].numel() if by_row and layer.pretrained.dim() > 1 else layer.pretrained.numel()
    counts = counts_by_rank(layer.taus, columns, density, epsilon)
    for tau, draws, out in zip(layer.taus, draw(seed, layer), found, strict=True):
        drop_in_rows(tau.reshape(-1, columns), draws.reshape(-1, columns), counts, out.view(-1, columns))
    return found


def counts_by_rank(taus: Tensor, columns: int, density: float, epsilon: float) -> Tensor:
    """How many of the LEVELS keep the coordinate of each rank in a row: (columns,), whole numbers of taus' dtype.

    These are the 1 − p_i, rounded; a coordinate that is alone has the density.
    """
    if columns == 1:
        shares = taus.new_full((1,), density)
    else:
        ranks = torch.arange(columns, dtype=taus.dtype, device=taus.device)
        shares = ranks.div_(columns - 1).sub_(0.5).mul_(epsilon).add_(density)
    return shares.mul_(LEVELS).round_().clamp_(min=1)


def drop_in_rows(rows: Tensor, draws: Tensor, counts: Tensor, out: Tensor) -> None:
    """Writes τ̂_t into `out`; rows: τ_t; all (r, n), but counts: (n,), of each rank in a row."""
    if rows.dtype == torch.float32 and compiles(rows.device):
        limits, kept = counts.numpy() - LEVELS // 2, counts.numpy() / LEVELS
        _drop(rows.numpy(), rows.numpy().view(np.uint32), draws.numpy(), limits, kept, out.numpy())
        return
    order = rows.abs().argsort(dim=1, stable=True)
    own = torch.empty_like(rows).scatter_(1, order, counts.expand_as(rows))
    survives = draws.to(rows).lt_(own - LEVELS // 2)
    torch.mul(survives, rows, out=out).div_(own / LEVELS)


@compiled
def _drop(tau: Array, bits: Array, draws: Array, limits: Array, kept: Array, dropped: Array) -> None:
    """`drop_in_rows` of float32; bits: those of τ_t, uint32.

    A row's magnitudes are sorted by one byte after the other, the lowest first, each with its place in the row: a
    fifth of the time of a sort that compares. Equal ones stay in their order. By the last byte they need not move:
    where one would go to is its rank.
    """
    size = tau.shape[1]
    keys, moved = np.empty(size, np.uint64), np.empty(size, np.uint64)  # the magnitude's bits, and the place's
    ends = np.empty((4, 256), np.uint32)  # per byte: how often each value occurs, then where its next key goes
    for row in range(len(tau)):
        ends[:] = 0
        for i in range(size):
            magnitude = bits[row, i] & 0x7FFFFFFF
            keys[i] = magnitude << 32 | i
            for byte in range(4):
                ends[byte, magnitude >> 8 * byte & 255] += 1
        for byte in range(4):
            total = 0
            for value in range(256):
                total, ends[byte, value] = total + ends[byte, value], total
        for byte in range(3):
            for i in range(size):
                value = keys[i] >> 32 + 8 * byte & 255
                moved[ends[byte, value]] = keys[i]
                ends[byte, value] += 1
            keys, moved = moved, keys
        for i in range(size):
            value, place = keys[i] >> 56, keys[i] & 0xFFFFFFFF
            rank = ends[3, value]
            ends[3, value] += 1
            survives = np.float32(draws[row, place] < limits[rank])
            dropped[row, place] = survives * tau[row, place] / kept[rank]
