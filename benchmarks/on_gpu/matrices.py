"""Methods that work on whole matrices, against their plain formulation: a full SVD, or autograd, of one by one.

The plain formulation is measured on one matrix of every shape, and of WUDI and DOGE in few of their steps: its time in
all is an estimate. So is the method's own where all its steps would take more than is left.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import plain
from torch import Generator, Tensor

from fusion import methods
from fusion.vectors import TaskVectors
from on_gpu.measure import once
from on_gpu.setup import Figures, Rows, Setup

GOALS = {"tsv_m": 3.0, "iso_c": 3.0, "iso_cts": 3.0, "wudi": 6.0, "doge": 20.0}  # s
STEPS = {"wudi": 300, "doge": 400}
FEW = (2, 8)  # steps that the time of all is estimated from
SHARE = 0.3  # of the time left that a merge may take in all its steps


def rows(setup: Setup) -> Rows:
    """One a method."""
    for method in GOALS:
        yield method, partial(compare, setup, method)


def compare(setup: Setup, method: str) -> Figures:
    """The seconds of a merge, and how many times as long the plain formulation takes."""
    merged = partial(merge, setup.taus, method)
    all_steps = STEPS.get(method)
    if all_steps is None:
        once(merged, setup.place)
        spent, is_estimated = once(merged, setup.place), False
    else:
        spent = estimate(setup, merged, all_steps)
        if not (is_estimated := setup.is_tiny or spent > SHARE * setup.left):
            spent = once(partial(merged, all_steps), setup.place)
    authors = plainly(setup, method)
    return {
        "ms": setup.goal(1000 * spent, at_most=1000 * GOALS[method]),
        "is estimated": is_estimated,
        "plain ms, estimated": setup.goal(1000 * authors),
        "times faster than plain": setup.goal(authors / spent),
    }


def merge(taus: TaskVectors, method: str, steps: int | None = None) -> None:
    """One merge, in so many steps where it takes any."""
    values = {} if steps is None else {"steps": steps}
    methods.merge(method, taus, rng=Generator().manual_seed(0), values=values).for_task(0).tensors()


def plainly(setup: Setup, method: str) -> float:
    """The seconds of the plain formulation for all matrices, from those of one of every shape."""
    formulation: Callable[..., Tensor] = getattr(plain, method)
    total = 0.0
    for name, count in shapes(setup.taus).items():
        taus = setup.taus.layer(name, setup.taus.pretrained[name]).taus
        if method in STEPS:
            total += count * estimate(setup, partial(formulation, taus), STEPS[method])
        else:
            total += count * once(partial(formulation, taus), setup.place)
    return total


def shapes(taus: TaskVectors) -> dict[str, int]:
    """The first matrix of every shape by its name, and how many there are."""
    matrices = {name: tuple(tensor.shape) for name, tensor in taus.pretrained.items() if tensor.dim() == 2}
    counts = Counter(matrices.values())
    return {next(name for name, own in matrices.items() if own == shape): count for shape, count in counts.items()}


def estimate(setup: Setup, work: Callable[[int], Any], steps: int) -> float:
    """The seconds of work(steps), from those of few steps."""
    few, more = FEW
    work(few)
    start, end = once(partial(work, few), setup.place), once(partial(work, more), setup.place)
    return start + max(0.0, end - start) / (more - few) * (steps - few)
