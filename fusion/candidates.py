"""The candidates of a grid: one merged model for every combination of hyper-parameters."""

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from torch import Generator, Tensor

from fusion import methods
from fusion.backbones import Backbone
from fusion.checkpoint import Checkpoint
from fusion.cost import Cost, measured
from fusion.device import autocast, on_device
from fusion.held import within_memory
from fusion.objectives import TotalEntropy
from fusion.pipelines import merged_grams_factor, scaling_name
from fusion.spaces import Space
from fusion.suites import Suite
from fusion.vectors import Merged, TaskModels


@dataclass(frozen=True)
class Candidate:
    """One point of the grid: the merged model, and what merging cost (shared with others of another scaling)."""

    hyperparameters: dict[str, Any]
    merged: Merged | TaskModels
    cost: Cost


def candidates(
    space: Space, settings: Mapping[str, Any], backbone: Backbone, suite: Suite, statistics: list[Checkpoint]
) -> Iterator[Candidate]:
    """Every candidate of the grid, merged; those that differ only in a factor of the task vector are merged once."""
    scaling = scaling_name(settings["algorithm"])
    held: dict[str, tuple[Merged | TaskModels, Cost]] = {}
    for one in settings["grid"]:
        rest = as_text({name: value for name, value in one.items() if name != scaling})
        if rest not in held or held[rest][0].scaling is None:
            with measured() as cost:
                merged = within_memory(partial(_merged, space, settings, one, backbone, suite, statistics))
            held = {rest: (merged, cost)}
        merged, cost = held[rest]
        yield Candidate(one, merged if merged.scaling is None else merged.at(one[scaling]), cost)


def _merged(*given: Any) -> Merged | TaskModels:
    """What `merge` makes of these, computed now: kept in memory where it is one model, else for what it costs."""
    merged = merge(*given).held()
    if isinstance(merged, TaskModels):
        for t in range(len(merged.vectors)):
            deque(merged.for_task(t).layers(), maxlen=0)
    return merged


def merge(
    space: Space,
    settings: Mapping[str, Any],
    hyperparameters: Mapping[str, Any],
    backbone: Backbone,
    suite: Suite,
    statistics: list[Checkpoint],
) -> Merged | TaskModels:
    """The merged model; what a method needs beside task vectors starts anew for every candidate."""
    adapt, seed = settings["adapt"], settings["seed"]
    found = used(statistics, settings["algorithm"], hyperparameters)
    given: dict[str, Any] = {"fishers": found, "grams": found, "merged_grams": next(iter(found), None)}
    if adapt:
        given["objective"] = total_entropy(backbone, suite, space, seed=seed, **adapt)
    if "loss" in settings["labelled"]:
        labelled = import_module("fusion.needs")  # code that no other method's result depends on
        examples, batch_size = settings["labelled"]["loss"], settings["select"]["batch_size"]
        given["loss"] = labelled.total_loss(backbone, suite, space, examples=examples, batch_size=batch_size)
    rng = Generator().manual_seed(seed)
    return methods.merge(settings["algorithm"], space.vectors, rng=rng, given=given, values=hyperparameters)


def used(statistics: Sequence[Checkpoint], algorithm: str, hyperparameters: Mapping[str, Any]) -> list[Checkpoint]:
    """The statistics that one candidate takes: those that were made with its hyper-parameters, or without any."""
    factor = merged_grams_factor(algorithm)
    if factor is None:
        return list(statistics)
    return [one for one in statistics if float(one.metadata["off_diagonal"]) == hyperparameters[factor]]


def total_entropy(
    backbone: Backbone, suite: Suite, space: Space, *, adapted_on: str, batch_size: int, seed: int
) -> TotalEntropy:
    """The entropy of the merged model on the suite's unlabelled inputs of the split `adapted_on`."""

    def logits(weights: Mapping[str, Tensor], batch: Any) -> list[Tensor]:
        with autocast():
            features = backbone.features(weights, batch).chunk(len(suite.heads))
            return [backbone.scores(*each).float() for each in zip(features, suite.heads, strict=True)]

    batches = suite.unlabelled(backbone, adapted_on, batch_size, seed)
    return TotalEntropy(lambda params: on_device(space.to_weights(params)), logits, batches)


def as_text(hyperparameters: Mapping[str, Any]) -> str:
    """Hyper-parameters as they stand in tables: JSON, in alphabetical order."""
    return json.dumps(hyperparameters, sort_keys=True)
