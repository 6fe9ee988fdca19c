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
from typing import Literal

import torch
from torch import Generator, Tensor

from fusion.hyperparameters import Density, Scaling
from fusion.methods.ties import trim
from fusion.vectors import Layer, Merged, TaskVectors

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
    itself the models are read six times.
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

    def norms(run: Layer) -> Iterator[tuple[int, int, Tensor]]:
        for s, t, product in products(run, top):
            yield s, t, product.sub_(lows[s, t]).div_(spans[s, t])

    def sums(run: Layer) -> Tensor:
        found = torch.zeros(count + 1, count, dtype=torch.float64, device=run.taus.device)
        for s, t, norm in norms(run):
            if s == t:
                found[count, t] = intra(norm, count).sum(dtype=torch.float64)
            found[s, t] = found[t, s] = norm.exp_().sum(dtype=torch.float64)
        return found

    means = (taus.reduce(sums, count + 1, count) / size).tolist()

    def score(run: Layer) -> Tensor:
        own = torch.empty_like(run.taus, dtype=torch.float32)
        inter = torch.zeros_like(run.taus, dtype=torch.float64)  # in float32 it depends on the order of tasks
        for s, t, norm in norms(run):
            if s == t:
                own[t] = intra(norm, count).div_(means[count][t])
            norm.exp_().div_(means[s][t])
            for task in {s, t}:
                inter[task] += norm
        return inter.mul_(own).float()

    return score


def tanh_scores(taus: TaskVectors) -> Score:
    """β of the authors' code where it is positive, else 0."""
    top = positive(largest(taus))

    def score(run: Layer) -> Tensor:
        wide = run.taus.double()  # squares of 1e30
        own = intra((wide / by_task(top, run)).square(), len(taus))
        return own.mul_((wide * wide.sum(0)).tanh_()).clamp_(min=0).float()

    return score


def products(run: Layer, top: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """s, t and u_st for every pair s ≤ t, of task vectors divided by their largest magnitude."""
    units = (run.taus / by_task(top, run)).float()
    for s in range(len(units)):
        for t in range(s, len(units)):
            yield s, t, units[s] * units[t]


def bounds(taus: TaskVectors, top: Tensor) -> tuple[Tensor, Tensor]:
    """The least value of every product u_st, and how far the largest is above it (1 where it is constant): (T, T)."""
    nothing = torch.full((len(taus), len(taus), 2), -torch.inf, device=taus.device)  # −min and max of no product

    def look(run: Layer) -> Tensor:
        ends = nothing.clone()
        for s, t, product in products(run, top):
            low, high = product.aminmax()
            ends[s, t] = ends[t, s] = torch.stack([-low, high])
        return ends

    low, high = torch.stack([nothing, *taus.visit(look)]).amax(0).unbind(2)
    return -low, positive(high + low)


def intra(norm: Tensor, count: int) -> Tensor:
    """exp(T · Norm), times e^−T: with a hundred tasks it overflows."""
    return (norm - 1).mul_(count).exp_()


def largest(taus: TaskVectors) -> Tensor:
    """The largest magnitude of every task vector: (T,)."""
    return taus.magnitude_thresholds(1 / max(1, taus.count()))


def positive(divisors: Tensor) -> Tensor:
    """The same with 1 in place of what is not positive and finite, and divides zeros only."""
    return divisors.where((divisors > 0) & divisors.isfinite(), 1)


def by_task(values: Tensor, layer: Layer) -> Tensor:
    """One value a task, to be broadcast over its coordinates: (T,) -> (T, 1, …)."""
    return values.reshape(-1, *[1] * (layer.taus.dim() - 1))
