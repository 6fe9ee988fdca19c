"""Intervals for accuracies: Wilson's for one of them, the bootstrap for averages and ratios over tasks."""

from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's (1927) score interval (low, high) of the proportion correct / n; within [0, 1]."""
    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"got {correct} correct of {n}, expected 0 <= correct <= n and n >= 1 (the scores)")
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    p = correct / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = sqrt(z2 * (p * (1 - p) + z2 / (4 * n)) / n) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def resampled_means(correct: NDArray[np.bool_], resamples: int, rng: np.random.Generator) -> Floats:
    """The means (resamples, models) of a bootstrap over the examples of a task, correct: (examples, models).

    Each resample draws the same examples for every model: differences and ratios of columns are paired.
    """
    n = len(correct)
    values = correct.astype(np.float32)
    means = np.empty((resamples, correct.shape[1]), np.float32)
    block = max(1, 20_000_000 // n)  # keeps the matrix of counts, (block, n), below 80 MB
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means[start : start + size] = counts.astype(np.float32) @ values / n
    return means


def resampled_seeds(values: Floats, rng: np.random.Generator) -> Floats:
    """The means (resamples,) over seeds drawn with replacement, values: (resamples, seeds)."""
    seeds = values.shape[1]
    picks = rng.integers(seeds, size=values.shape)
    return np.take_along_axis(values, picks, axis=1).mean(axis=1)


def percentile_interval(samples: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """The central interval (low, high) of the finite samples, (nan, nan) if there are none."""
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def difference_z(p: float, n: int, q: float, m: int) -> float:
    """How many standard errors the proportion p of n lies above q of m (pooled z); 0 if both are 0 or 1."""
    pooled = (p * n + q * m) / (n + m)
    error = sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return (p - q) / error if error > 0 else 0.0
