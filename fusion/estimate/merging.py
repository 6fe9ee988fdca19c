"""What merging by a method computes, beside scoring: traversals of the models, objectives, losses."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fusion.estimate import stages
from fusion.estimate.facts import FLOAT, Model
from fusion.estimate.rates import Rates
from fusion.estimate.work import Unknown, Work
from fusion.pipelines import method_class, needs, parts, prefix, scaling_name

Grid = Sequence[Mapping[str, Any]]
WIDTH = 768  # of the matrices that the spectral methods' figures were measured on; an SVD costs more in wider ones


def merges(pipeline: str, grid: Grid, adaptive: bool) -> int:
    """How many of the grid's points are merged anew: those that differ only in the scaling are merged once."""
    scaling = scaling_name(pipeline)
    if adaptive:
        return len(grid)
    return len({json.dumps({k: v for k, v in one.items() if k != scaling}, sort_keys=True) for one in grid})


def traversed(rates: Rates, pipeline: str, grid: Grid, count: int, model: Model, tasks: int) -> float:
    """Bytes that cross memory in as much time as so many merges take; of a grid, all take as long as the first."""
    total, per_task = 0.0, method_class(pipeline) == "multi-model"
    for part in (one for one in parts(pipeline) if one not in ADAPTIVE and one not in LABELLED):
        solver = grid[0].get(prefix(pipeline, part) + "solver")
        name = next((name for name in (f"{part}, {solver}", part) if name in rates.merges), None)
        if name is None:
            raise Unknown(part, "what merging by a method costs: give `merges` its number (config/rates.yaml)")
        factor = model.size.width / WIDTH if part in rates.spectral else 1
        total += rates.merges[name] * factor * (1 + per_task)
    return count * total * (tasks + 2) * FLOAT * model.coordinates


def passes(pipeline: str, grid: Grid, model: Model, tasks: int, settings: Mapping[str, Any], is_image: bool) -> Work:
    """What a method computes by the network, for all points of its grid. settings: batch_size of the objective,
    loss_examples and loss_batch of the loss."""
    total = Work()
    for values in grid:
        for part in parts(pipeline):
            start = prefix(pipeline, part)
            own = {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}
            if part in ADAPTIVE:
                objectives, crossings = ADAPTIVE[part](own, tasks)
                total += stages.adaptation(model, tasks, objectives, settings["batch_size"], crossings)
            elif part in LABELLED:
                total += _losses(model, LABELLED[part](own, tasks), tasks, settings, is_image)
            elif {"objective", "loss"} & set(needs(part)):
                raise Unknown(part, "how often a method calls the network: say so in fusion/estimate/merging.py")
    return total


def _losses(model: Model, calls: tuple[float, float], tasks: int, settings: Mapping[str, Any], is_image: bool) -> Work:
    """calls: losses of one task; merged models made. The examples are decoded once."""
    losses, made = calls
    examples = losses * settings["loss_examples"]
    return Work(
        forwards=examples,
        batches=max(losses, examples / settings["loss_batch"]),
        decoded=tasks * settings["loss_examples"] * is_image,
        traversed=made * (tasks + 2) * FLOAT * model.coordinates,
    )


def _adamerging(values: Mapping[str, Any], tasks: int) -> tuple[float, float]:
    return values["steps"], 10 + tasks


def _concrete(values: Mapping[str, Any], tasks: int) -> tuple[float, float]:
    """Two objectives a step where λ is learned, then those that adapt λ; one otherwise."""
    if values["granularity"] == "none":
        return values["steps"], 34
    return 2 * values["steps"] + values["adapt_steps"], (52 + tasks) / 2


def _adarank(values: Mapping[str, Any], tasks: int) -> tuple[float, float]:
    """The components of all tasks are multiplied out at every step, and once more for the gradient."""
    return values["steps"], 10 + 2 * tasks


def _lorahub(values: Mapping[str, Any], tasks: int) -> tuple[float, float]:
    return values["steps"] * tasks, values["steps"]


def _greedy(values: Mapping[str, Any], tasks: int) -> tuple[float, float]:
    """Every added task is tried at all levels, on all tasks so far."""
    return values["levels"] * sum(range(2, tasks + 1)), values["levels"] * (tasks - 1)


# objectives or losses of one grid point, and the crossings of memory that go with them
ADAPTIVE = {"adamerging": _adamerging, "concrete": _concrete, "adarank": _adarank}
LABELLED = {"lorahub": _lorahub, "greedy_task_arithmetic": _greedy}
