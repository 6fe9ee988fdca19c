"""Every row of the contract that draws nothing, merged on the device and on the CPU: how far the two are apart.

The norm of their difference relative to that of the update, of the tensor where it is largest. Where there is no GPU,
the plain formulations, which are those of a GPU, stand for it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion import device
from fusion.pipelines import parts
from fusion.vectors import TaskVectors
from on_gpu.setup import Figures, Rows, Setup

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from laws import DRAWS, TASKS
from tiny_vectors import Model, label, merge, random_models, tensors, variants

SMALL = {"blocks.0.a": (40, 35), "blocks.0.b": (35,), "blocks.1.a": (40, 35), "blocks.1.d": (2, 3, 4), "e": ()}
LARGE = {"blocks.0.a": (320, 192), "blocks.0.b": (320,), "blocks.1.a": (320, 192), "blocks.1.c": (192, 320)}
AT_MOST = 1e-3


def rows(setup: Setup) -> Rows:
    """One a variant."""
    for variant in variants():
        pipeline, hyper = variant.values
        if not draws(pipeline, hyper):
            yield f"{pipeline} {label(hyper)}", partial(compare, setup, pipeline, hyper)


def draws(pipeline: str, hyper: dict[str, Any]) -> bool:
    """Whether the draws of every kind of device are its own."""
    return any(f"{name} {value}".strip() in DRAWS for name in parts(pipeline) for value in ("", *hyper.values()))


def compare(setup: Setup, pipeline: str, hyper: dict[str, Any]) -> Figures:
    """The largest relative difference."""
    count = next((TASKS[part][0] for part in parts(pipeline) if part in TASKS), 3)
    start, others = random_models(SMALL if setup.is_tiny else LARGE, count)
    here = tensors(merge(pipeline, TaskVectors(start, others), **hyper))
    with plain_on_the_cpu():
        vectors = TaskVectors(moved(start, setup.place), [moved(model, setup.place) for model in others])
        there = moved(tensors(merge(pipeline, vectors, **hyper)), device.CPU)
    worst = max(relative(there[name], tensor, start[name.partition(" of ")[0]]) for name, tensor in here.items())
    return {"relative difference": setup.goal(worst, at_most=AT_MOST)}


@contextmanager
def plain_on_the_cpu() -> Iterator[None]:
    """The formulations of other devices, on the CPU too."""
    before, device.IS_PLAIN = device.IS_PLAIN, True
    try:
        yield
    finally:
        device.IS_PLAIN = before


def moved(model: Model, place: torch.device) -> Model:
    """The model there."""
    return {name: tensor.to(place) for name, tensor in model.items()}


def relative(there: Tensor, here: Tensor, start: Tensor) -> float:
    """‖there − here‖ / ‖here − θ0‖; where nothing is updated, ‖there − here‖."""
    difference, update = ((one - other).double().norm().item() for one, other in ((there, here), (here, start)))
    return difference / update if update else difference
