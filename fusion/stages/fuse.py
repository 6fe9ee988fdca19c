"""Fusing the models of one suite, mode and space by one method; hyper-parameters chosen on validation data."""

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Generator, Tensor

from fusion.artifacts import new_file, new_folder, write_json
from fusion.backbones import Backbone, open_backbone
from fusion.checkpoint import save_tensors
from fusion.cost import measured
from fusion.data.suites import Scored, Suite
from fusion.device import autocast, on_device
from fusion.hyperparameters import method_class
from fusion.job import Job, progress
from fusion.methods import load
from fusion.objectives import TotalEntropy
from fusion.spaces import Space, open_space
from fusion.vectors import Merged


def fuse(job: Job) -> None:
    """Writes the merged model to output `model`, the candidates' scores to `selection`, and `diagnostics`.

    The folder holds the weights that differ from θ0 and recipe.json: hyper-parameters, cost and diagnostics.
    Of several candidates the one with the best mean validation accuracy is written.
    """
    settings = job.params["settings"]
    backbone, suite = open_backbone(job.input["model"], settings["backbone"]), Suite.of(job)
    finetuned = [Path(path) for path in job.paths("finetuned")]
    space = open_space(settings["space"], Path(job.input["model"]), job.optional("init"), finetuned)
    objective = total_entropy(backbone, suite, space, settings["fuse"], settings["seed"])
    validation = suite.scored(backbone, "val", settings["fuse"]["select_examples"], 2 * settings["fuse"]["batch_size"])
    rows: list[dict[str, Any]] = []
    best: tuple[float, dict[str, Any], Merged] | None = None
    with measured() as cost:
        for candidate, merged in candidates(space, settings, objective):
            found = score(backbone, on_device(space.to_weights(merged.tensors())), validation, candidate)
            rows += found
            mean = sum(row["value"] for row in found) / len(found)
            best = max(best or (-1.0, candidate, merged), (mean, candidate, merged), key=lambda one: one[0])
    assert best is not None, "a grid has at least one candidate"
    accuracy, chosen, merged = best
    recipe = {
        "hyperparameters": chosen,
        "selected_on": "val" if len(settings["grid"]) > 1 else "",
        "adapted_on": settings["fuse"]["adapted_on"] if objective.calls else "",
        "fuse_seconds": cost.seconds,
        "peak_bytes": cost.peak_bytes,
        "extra_parameters": 0,
        "diagnostics": merged.diagnostics | masked_individuals(backbone, space, merged, validation),
    }
    with new_folder(job.output["model"]) as folder:
        save_tensors(folder / "model.safetensors", space.to_weights(merged.tensors()))
        write_json(folder / "recipe.json", recipe)
    selection = [row | {"split": "val", "selected": row["hyperparameters"] == _text(chosen)} for row in rows]
    _write_rows(job, "selection", selection)
    _write_rows(job, "diagnostics", list(flat(recipe["diagnostics"])))
    where = f"{job.wildcards['mode']}, {settings['space']} space"
    progress(f"{job.wildcards['method']} ({where}): validation {accuracy:.3f} in {cost.seconds:.0f} s")


def candidates(
    space: Space, settings: Mapping[str, Any], objective: TotalEntropy
) -> Iterator[tuple[dict[str, Any], Merged]]:
    """Every candidate of the grid with its merged model.

    `scaling` multiplies the merged task vector of every data-free method (a law of the contract tests), so that
    candidates which differ in nothing else share the work of merging.
    """
    algorithm, seed = settings["algorithm"], settings["seed"]
    units: dict[str, Merged] = {}
    for one in settings["grid"]:
        if method_class(algorithm) != "data-free":
            yield one, merge(space, algorithm, one, objective, seed)
            continue
        unit = one | {"scaling": 1.0} if "scaling" in one else one
        if (key := json.dumps(unit, sort_keys=True)) not in units:
            units = {key: merge(space, algorithm, unit, objective, seed).held()}
        yield one, units[key].times(one.get("scaling", 1.0))


def merge(
    space: Space, algorithm: str, hyperparameters: Mapping[str, Any], objective: TotalEntropy, seed: int
) -> Merged:
    """The merged model of one candidate; the objective goes to the methods that ask for one."""
    method = load(algorithm)
    needs = [objective] if "objective" in inspect.signature(method).parameters else []
    return method(space.vectors, *needs, rng=Generator().manual_seed(seed), **hyperparameters)


def total_entropy(backbone: Backbone, suite: Suite, space: Space, fuse: Mapping[str, Any], seed: int) -> TotalEntropy:
    """The entropy of the merged model on the suite's unlabelled inputs."""

    def logits(weights: Mapping[str, Tensor], task: int, batch: Any) -> Tensor:
        with autocast():
            return backbone.logits(weights, batch, suite.heads[task]).float()

    streams = suite.unlabelled(backbone, fuse["adapted_on"], fuse["batch_size"], seed)
    return TotalEntropy(lambda params: on_device(space.to_weights(params)), logits, streams)


def score(
    backbone: Backbone, weights: Mapping[str, Tensor], validation: list[Scored], candidate: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One row a task: the candidate's accuracy."""
    return [
        {"hyperparameters": _text(candidate), "task": part.task, "metric": "accuracy", "n": len(part.labels)}
        | {"value": part.accuracy(backbone, weights)}
        for part in validation
    ]


def masked_individuals(
    backbone: Backbone, space: Space, merged: Merged, validation: list[Scored]
) -> dict[str, dict[str, float]]:
    """Each model's own-task accuracy under the mask learned for all, where the method has one."""
    if merged.individual is None:
        return {}
    found = {}
    for t, part in enumerate(validation):
        weights = on_device(space.to_weights(merged.individual_tensors(t)))
        found[part.task] = part.accuracy(backbone, weights)
    return {"masked_individual_accuracy": found}


def flat(diagnostics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row a number of the nested diagnostics: its name, its place within that ('' if it is one), its value."""
    for name, value in diagnostics.items():
        yield from ({"name": name, "key": key, "value": number} for key, number in _leaves(value))


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if not isinstance(value, dict | list):
        yield key, float(value)
        return
    for part, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, f"{key}/{part}" if key else str(part))


def _text(hyperparameters: Mapping[str, Any]) -> str:
    return json.dumps(hyperparameters, sort_keys=True)


def _write_rows(job: Job, output: str, rows: list[dict[str, Any]]) -> None:
    identity = {name: job.wildcards[name] for name in ("backbone", "mode", "space", "suite", "method")}
    frame = pd.DataFrame([identity | {"seed": int(job.wildcards["seed"])} | row for row in rows])
    with new_file(job.output[output]) as path:
        frame.to_parquet(path, index=False)
