"""PCB-merging: parameter competition balancing.

Du et al., NeurIPS 2024, arXiv 2410.02396, section 3.2. With softmax and Norm (to 0 … 1) over all P coordinates of the
model, u_ts = τ_t ⊙ τ_s, and the score
β_t = softmax(T · Norm(u_tt)) ⊙ Σ_s softmax(Norm(u_ts)):  θ = θ0 + λ · Σ_t β̂_t ⊙ τ_t / Σ_t β̂_t,
β̂_t being β_t at its ⌊r P⌋ largest coordinates, else 0. The sum over s includes t.

The authors' code (pcb-merging.py, of three variants there) scores otherwise (balancing 'tanh'):
β_t = exp(T · Norm(|τ_t|)²) ⊙ tanh(τ_t ⊙ Σ_s τ_s), β̂_t = Norm(max(β_t, κ_t)), κ_t its ⌊r P⌋-th largest value; with
λ 1.2. Its vision variants have r 0.05 and normalize the τ_s in the sum. Departures there: κ_t is at least 0, the
magnitudes are not clipped at their 0.01 % and 99.99 % quantiles, and their smallest is taken to be 0.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from fusion.compiled import compiled
from fusion.device import compiles
from fusion.hyperparameters import Density, Scaling
from fusion.methods.ties import trim
from fusion.vectors import Layer, Merged, TaskVectors

Array = NDArray[Any]
TILE, PART = 4096, 256  # coordinates of all tasks that stay in a core's second cache, and in its first
Score = Callable[[Layer], Tensor]  # β ≥ 0 of every task, (T, *shape) float32


def pcb(
    taus: TaskVectors,
    *,
    rng: Generator,
    density: Density = 0.1,
    scaling: Scaling = 1.0,
    balancing: Literal["softmax", "tanh"] = "softmax",
) -> Merged:
    """The pre-trained model plus `scaling` (λ) times the average of the task vectors, weighted with their scores.

    density: fraction (r) of coordinates kept per task, of the whole model, by their score; those of the same score
    as the last one kept are kept too. balancing: the scores of the paper or of the authors' code. Before the merge
    itself the models are read four times.
    """
    score = softmax_scores(taus) if balancing == "softmax" else tanh_scores(taus)
    scores = taus.transform(score, coordinatewise=True)
    least = scores.magnitude_thresholds(density)
    span = torch.ones_like(least) if balancing == "softmax" else positive(largest(scores) - least)

    def update(layer: Layer) -> Tensor:
        if balancing == "softmax":
            weights = trim(score(layer), least)
        else:
            weights = (score(layer) - by_task(least, layer)).clamp_(min=0) / by_task(span, layer)
        weights = weights.to(layer.taus.dtype)
        total = weights.sum(0)
        return (weights * layer.taus).sum(0) / total.where(total > 0, 1)

    return taus.map(update, scaling=scaling, coordinatewise=True)


def softmax_scores(taus: TaskVectors) -> Score:
    """β of the paper, times P²: a factor that all tasks share does not change the average."""
    top = positive(largest(taus))  # Norm takes no notice of it, but products of 1e30 overflow
    lows, spans = bounds(taus, top)
    count, size = len(taus), max(1, taus.count())

    def sums(run: Layer) -> Tensor:
        found = torch.zeros(count + 1, count, dtype=torch.float64, device=run.taus.device)
        units = scaled(run, top)
        for t, unit in enumerate(units):
            found[count, t] = intra(unit.square().sub_(lows[t, t]).div_(spans[t, t]), count).sum(dtype=torch.float64)
        found[:count] = exp_sums(units, lows, spans)
        return found

    means = taus.reduce(sums, count + 1, count) / size

    def score(run: Layer) -> Tensor:
        units = scaled(run, top)
        inter = exp_totals(units, lows, spans, means[:count])
        for t, unit in enumerate(units):
            own = intra(unit.square().sub_(lows[t, t]).div_(spans[t, t]), count)
            inter[t] *= own.div_(means[count, t])
        return inter.float()

    return score


def exp_sums(units: Tensor, lows: Tensor, spans: Tensor) -> Tensor:
    """Σ over coordinates of exp(Norm(u_st)), (T, T) float64; units: (T, c)."""
    count = len(units)
    sums = torch.zeros(count, count, dtype=torch.float64, device=units.device)
    if compiles(units.device):
        nothing = np.empty((count, 0))
        _exps(units.numpy(), lows.numpy(), spans.numpy(), sums.numpy(), True, nothing)
        return sums + sums.triu(1).T
    for s, t, product in products(units):
        norm = product.sub_(lows[s, t]).div_(spans[s, t])
        sums[s, t] = sums[t, s] = norm.exp_().sum(dtype=torch.float64)
    return sums


def exp_totals(units: Tensor, lows: Tensor, spans: Tensor, means: Tensor) -> Tensor:
    """Σ_s exp(Norm(u_st)) / means[s, t] for every task t: (T, *shape) -> (T, *shape) float64.

    In float32 it would depend on the order of tasks.
    """
    totals = torch.zeros_like(units, dtype=torch.float64)
    if compiles(units.device):
        flat, out = (one.reshape(len(units), -1).numpy() for one in (units, totals))
        _exps(flat, lows.numpy(), spans.numpy(), 1 / means.numpy(), False, out)
        return totals
    for s, t, product in products(units):
        norm = product.sub_(lows[s, t]).div_(spans[s, t]).exp_().div_(means[s, t])
        for task in {s, t}:
            totals[task] += norm
    return totals


@compiled
def _exps(units: Array, lows: Array, spans: Array, factors: Array, is_sum: bool, totals: Array) -> None:
    """exp(Norm(u_st)) for s ≤ t: added over coordinates to factors (T, T), or else, times these, to totals (T, c).

    As Norm is in 0 … 1, the exponential is e^½ times the first nine terms of its series about ½: exact to rounding,
    and made of vector instructions, which numba has not for exp. PART coordinates are added one beside the other.
    """
    half, one, lift = np.float32(0.5), np.float32(1), np.float32(1 << 24)  # 1 / span overflows for the least spans
    c2, c3, c4, c5 = np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24), np.float32(1 / 120)
    c6, c7, c8, root = np.float32(1 / 720), np.float32(1 / 5040), np.float32(1 / 40320), np.exp(0.5)
    exps, sums = np.empty(PART, np.float32), np.empty(PART, np.float64)
    count, size = units.shape
    for start in range(0, size, TILE):
        for s in range(count):
            for t in range(s, count):
                low, inverse, factor = lows[s, t], one / (spans[s, t] * lift), root * factors[s, t]
                sums[:] = 0
                for first in range(start, min(start + TILE, size), PART):
                    left, right = units[s, first : first + PART], units[t, first : first + PART]
                    for i in range(len(left)):
                        x = (left[i] * right[i] - low) * lift * inverse - half
                        tail = c4 + x * (c5 + x * (c6 + x * (c7 + x * c8)))
                        exps[i] = one + x * (one + x * (c2 + x * (c3 + x * tail)))
                    if is_sum:
                        for i in range(len(left)):
                            sums[i] += exps[i]
                        continue
                    to_s, to_t = totals[s, first : first + PART], totals[t, first : first + PART]
                    for i in range(len(left)):
                        to_s[i] += exps[i] * factor
                    if s != t:
                        for i in range(len(left)):
                            to_t[i] += exps[i] * factor
                if is_sum:
                    factors[s, t] += root * sums.sum()


def tanh_scores(taus: TaskVectors) -> Score:
    """β of the authors' code where it is positive, else 0."""
    top = positive(largest(taus))

    def score(run: Layer) -> Tensor:
        wide = run.taus.double()  # squares of 1e30
        own = intra((wide / by_task(top, run)).square(), len(taus))
        return own.mul_((wide * wide.sum(0)).tanh_()).clamp_(min=0).float()

    return score


def scaled(run: Layer, top: Tensor) -> Tensor:
    """Task vectors divided by their largest magnitude: (T, *shape) float32."""
    return (run.taus / by_task(top, run)).float()


def products(units: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """s, t and u_st for every pair s ≤ t of task vectors."""
    for s in range(len(units)):
        for t in range(s, len(units)):
            yield s, t, units[s] * units[t]


def bounds(taus: TaskVectors, top: Tensor) -> tuple[Tensor, Tensor]:
    """The least value of every product u_st, and how far the largest is above it (1 where it is constant): (T, T)."""
    nothing = torch.full((len(taus), len(taus), 2), -torch.inf, device=taus.device)  # −min and max of no product

    def look(run: Layer) -> Tensor:
        ends = nothing.clone()
        for s, t, product in products(scaled(run, top)):
            low, high = product.aminmax()
            ends[s, t] = ends[t, s] = torch.stack([-low, high])
        return ends

    low, high = torch.stack([nothing, *taus.visit(look)]).amax(0).unbind(2)
    return -low, positive(high + low)


def intra(norm: Tensor, count: int) -> Tensor:
    """exp(T · Norm), times e^−T: with a hundred tasks it overflows."""
    return (norm - 1).mul_(count).exp_()


def largest(taus: TaskVectors) -> Tensor:
    """The largest magnitude of every task vector: (T,) float32, 0 where there is none."""
    nothing = torch.zeros(len(taus), device=taus.device)

    def of_run(run: Layer) -> Tensor:
        return run.taus.to(torch.float32).abs().amax(1)

    return torch.stack([nothing, *taus.visit(of_run)]).amax(0)


def positive(divisors: Tensor) -> Tensor:
    """The same with 1 in place of what is not positive and finite, and divides zeros only."""
    return divisors.where((divisors > 0) & divisors.isfinite(), 1)


def by_task(values: Tensor, layer: Layer) -> Tensor:
    """One value a task, to be broadcast over its coordinates: (T,) -> (T, 1, …)."""
    return values.reshape(-1, *[1] * (layer.taus.dim() - 1))
