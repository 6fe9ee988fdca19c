"""Merges with all models on the device, against one pass over them: the time in which the device adds all T + 1 models.

TIES is also measured against its plain formulation, which holds all task vectors and takes a k-th value of each.
"""

from collections import deque
from functools import partial

import torch
from plain import plain_ties
from torch import Generator

from fusion import methods
from on_gpu.measure import once, seconds
from on_gpu.setup import Figures, Rows, Setup

PASS, ARITHMETIC, TIES = "one pass over all models", "task_arithmetic", "ties"
GOALS = {ARITHMETIC: 10.0, TIES: 30.0, "dare + task_arithmetic": 20.0, "pcb": 80.0}  # ms


def rows(setup: Setup) -> Rows:
    """The pass, then a merge after the other."""
    yield PASS, partial(one_pass, setup)
    for pipeline in GOALS:
        yield pipeline, partial(merged, setup, pipeline)


def one_pass(setup: Setup) -> Figures:
    """The sum of all models, flattened."""
    models = [setup.taus.pretrained, *setup.taus.finetuned]
    flat = torch.stack([torch.cat([tensor.reshape(-1) for tensor in model.values()]) for model in models])
    out = torch.empty_like(flat[0])
    spent = seconds(lambda: torch.sum(flat, 0, out=out), setup.place, setup.sizes.repeats)
    return {"ms": setup.goal(1000 * spent), "GB/s": setup.goal((flat.nbytes + out.nbytes) / spent / 1e9)}


def merged(setup: Setup, pipeline: str) -> Figures:
    """One merge, in passes too."""

    def work() -> None:
        methods.merge(pipeline, setup.taus, rng=Generator().manual_seed(0)).for_task(0).tensors()

    ms = 1000 * seconds(work, setup.place, setup.sizes.repeats)
    figures = {"ms": setup.goal(ms, at_most=GOALS[pipeline]), "passes": setup.goal(ms / setup.figure(PASS, "ms"))}
    if pipeline != TIES:
        return figures
    plain = 1000 * once(lambda: deque(plain_ties(setup.taus), maxlen=0), setup.place)
    return figures | {"plain ms": setup.goal(plain), "times faster than plain": setup.goal(plain / ms)}
