"""Exact order statistics of task vectors that are larger than memory.

Two passes count bits and find the statistic wherever it is, on any device (`_radix_select`). On the CPU one pass
mostly does: that over the coordinates near a guess (`_bracketed`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fusion.compiled import BLOCK, compiled
from fusion.device import compiles

if TYPE_CHECKING:
    from fusion.vectors import Layer, TaskVectors


def magnitude_thresholds(taus: TaskVectors, density: float) -> Tensor:
    """The k-th largest |τ_t| over all coordinates, k = ⌊density · P⌋, exact, as (T,) float32.

    Infinite where k = 0. On the CPU a sample brackets each threshold, and one pass over the models counts the
    coordinates above the bracket and gathers those in it. Should the threshold not be there, and on a GPU, two passes
    find it wherever it is.
    """
    keep = kept(density, taus.count())
    if keep == 0:
        return torch.full((len(taus),), torch.inf, device=taus.device)
    found = _bracketed(taus, keep) if compiles(taus.device) else None
    return _radix_select(taus, keep) if found is None else found


def largest(tensor: Tensor) -> float:
    """The largest magnitude, 0 of an empty tensor; the host waits for it."""
    return torch.stack(tensor.aminmax()).abs().amax().item() if tensor.numel() else 0.0


def kept(density: float, count: int) -> int:
    """⌊density · count⌋ coordinates, safe against 0.29 · 100 = 28.999…"""
    return int(density * count + 1e-6)


def magnitudes_at(rows: np.ndarray, places: list[int]) -> np.ndarray:
    """The magnitudes at rising places of every row in rising order, exact: (r, n) -> (r, k). On the CPU.

    In a long row a sample tells a magnitude that is just below the first one, and only what is above is ordered.
    """
    if rows.shape[1] < LONG:
        return _partitioned(np.abs(rows), places)
    return np.concatenate([_in_long_row(row, places) for row in rows])


def _in_long_row(row: np.ndarray, places: list[int]) -> np.ndarray:
    """`magnitudes_at` of (n,): (1, k)."""
    sample = np.abs(row[::STRIDE])
    rank = places[0] * len(sample) / len(row)
    guess = max(0, int(rank - _slack(rank, len(sample))))
    upper = _at_least(row, np.partition(sample, guess)[guess])
    below = len(row) - len(upper)
    if below > places[0]:  # the sample misled
        upper, below = np.abs(row), 0
    return _partitioned(upper[None], [place - below for place in places])


def _partitioned(magnitudes: np.ndarray, places: list[int]) -> np.ndarray:
    """What is at rising places in every row: (r, n) -> (r, k).

    One place after the other, each among what the one before has put above it: numpy has vector instructions for a
    single place.
    """
    found, first = [], 0
    for place in places:
        magnitudes = np.partition(magnitudes, place - first, axis=1)[:, place - first :]
        found.append(magnitudes[:, 0])
        first = place
    return np.stack(found, axis=1)


@compiled
def _at_least(row: np.ndarray, low: np.floating) -> np.ndarray:
    """The magnitudes of (n,) that are `low` or more, in their order."""
    found, count = np.empty_like(row), 0
    for value in row:
        found[count] = abs(value)
        count += abs(value) >= low
    return found[:count]


LONG = 1 << 14  # coordinates in a row, of which a sample tells something
STRIDE = 251  # of the sample; prime, or it would be of a few columns of each matrix
MOST = 1 / 16  # of the coordinates gathered in brackets: more are few values repeated, which are counted instead


def _bracketed(taus: TaskVectors, keep: int) -> Tensor | None:
    """The k-th largest |τ_t|, (T,), or None where a bracket from a sample missed one."""
    sample = np.concatenate(list(taus.visit(lambda run: np.stack([_magnitudes(tau) for tau in run.taus]), STRIDE)), 1)
    size, rank = sample.shape[1], keep * sample.shape[1] / taus.count()
    slack = _slack(rank, size)
    places = [int(max(0, size - rank - slack)), int(min(size - 1, size - rank + slack))]
    brackets = np.partition(sample, places, axis=1)[:, places]
    above, equal, within = [0] * len(taus), [0] * len(taus), [list[np.ndarray]() for _ in brackets]
    room = len(taus) * taus.count() * MOST
    for found in taus.visit(lambda run: [_beside(tau, *pair) for tau, pair in zip(run.taus, brackets, strict=True)]):
        for t, (larger, count, values) in enumerate(found):
            above[t] += larger
            equal[t] += count
            within[t].append(values)
            room -= len(values)
        if room < 0:
            return None
    ranks = [keep - larger for larger in above]
    found = [_largest(*each) for each in zip(ranks, equal, within, brackets, strict=True)]
    return None if None in found else torch.tensor(found, dtype=torch.float32)


def _slack(rank: float, size: int) -> float:
    """How far the place of a value in a sample of that size may be from the one expected: six standard deviations."""
    return 6 * max(0.0, rank * (1 - rank / size)) ** 0.5 + 2


def _beside(tau: Tensor, low: np.float32, high: np.float32) -> tuple[int, int, np.ndarray]:
    """How many coordinates of one run are above the bracket and in it, and the values there.

    No values where the bracket is of one, which may be that of most coordinates.
    """
    larger, values = _count(tau.to(torch.float32).numpy(), low, high)
    return larger, len(values), values[:0].copy() if low == high else values


@compiled
def _count(tau: np.ndarray, low: np.float32, high: np.float32) -> tuple[int, np.ndarray]:
    """How many magnitudes of (c,) float32 are above `high`, and those from `low` to `high`; in blocks that stay in the
    core's own cache."""
    larger, gathered = 0, 0
    found = np.empty(len(tau), np.float32)
    is_within = np.zeros(BLOCK, np.uint8)
    eights = is_within.view(np.uint64)  # most of which are zero
    for start in range(0, len(tau), BLOCK):
        values = tau[start : start + BLOCK]
        is_within[len(values) :] = 0
        for i in range(len(values)):
            is_within[i] = np.uint8(abs(values[i]) >= low) ^ np.uint8(abs(values[i]) > high)
        for i in range(len(values)):  # a loop of its own, or none of the two is made of vector instructions
            larger += int(abs(values[i]) > high)
        for eight in range(len(eights)):
            if eights[eight]:
                for i in range(8 * eight, 8 * eight + 8):
                    if is_within[i]:
                        found[gathered] = abs(values[i])
                        gathered += 1
    return larger, found[:gathered].copy()


def _magnitudes(tau: Tensor) -> np.ndarray:
    """|τ_t| of one run, in float32: (c,)."""
    return tau.to(torch.float32).abs().numpy()


def _largest(k: int, count: int, found: list[np.ndarray], bracket: np.ndarray) -> float | None:
    """The k-th largest of `count` values in the bracket; None where there are not so many."""
    if not 0 < k <= count:
        return None
    if bracket[0] == bracket[1]:
        return float(bracket[0])
    return float(np.partition(np.concatenate(found), count - k)[count - k])


def _radix_select(taus: TaskVectors, keep: int) -> Tensor:
    """The k-th largest |τ_t|, (T,): its upper 16 bits, and then the lower 16 of the coordinates that share those."""
    rank = torch.full((len(taus),), keep, device=taus.device)
    upper, above = _select(_histogram(taus, lambda bits: (bits >> 16, torch.ones_like(bits)), 1 << 15), rank)

    def lower_half(bits: Tensor) -> tuple[Tensor, Tensor]:
        return bits & 0xFFFF, (bits >> 16 == upper[:, None]).to(bits)

    lower, _ = _select(_histogram(taus, lower_half, 1 << 16), rank - above)
    return (upper << 16 | lower).to(torch.int32).view(torch.float32)


def _histogram(taus: TaskVectors, count: Callable[[Tensor], tuple[Tensor, Tensor]], keys: int) -> Tensor:
    """How often every key occurs in all runs, (T, keys) int64; count: the bits of a run -> keys and how often each
    counts, (T, c) int64."""

    def of_run(run: Layer) -> Tensor:
        magnitudes = run.taus.reshape(len(run.taus), -1).to(torch.float32).abs()
        bits = magnitudes.view(torch.int32).long()  # of the same order as the numbers
        return bits.new_zeros(len(bits), keys).scatter_add_(1, *count(bits))

    return taus.reduce(of_run, len(taus), keys)


def _select(histogram: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Per task, the key of its k-th largest coordinate, k = rank, and how many coordinates have a larger one: (T,)."""
    at_least = histogram.flip(1).cumsum(1).flip(1)  # (T, keys): coordinates whose key is at least this one
    found = (at_least >= rank[:, None]).sum(1, keepdim=True) - 1  # at_least falls: the last key that has enough
    above = at_least.gather(1, found) - histogram.gather(1, found)
    return found[:, 0], above[:, 0]
