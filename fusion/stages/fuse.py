"""Fusing the models of one suite, mode and space by one method; hyper-parameters chosen on validation data."""

import time
from collections.abc import Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from fusion.allocation import allocation
from fusion.artifacts import new_file, new_folder, write_json
from fusion.backbones import Backbone, open_backbone
from fusion.candidates import Candidate, as_text, candidates, used
from fusion.checkpoint import Checkpoint, save_tensors
from fusion.device import on_device
from fusion.job import Job, progress, queue_seconds
from fusion.origin import origin
from fusion.pipelines import scaling_name
from fusion.spaces import Space, open_space
from fusion.suites import Scored, Suite
from fusion.vectors import Merged, NotApplicable, TaskModels

SELECTION = ("hyperparameters", "scaling", "task", "split", "metric", "value", "n", "selected")
DIAGNOSTICS = ("name", "key", "value")


def fuse(job: Job) -> None:
    """Writes the merged model to output `model`, the candidates' scores to `selection`, and `diagnostics`.

    The folder holds the weights that differ from θ0 (of a multi-model method a folder a task) and recipe.json:
    hyper-parameters, cost (statistics included) and diagnostics. Of several candidates the one with the best mean
    validation accuracy is written; one alone is not scored. Where the method cannot merge these models, the recipe
    holds the reason alone.
    """
    try:
        if job.params["settings"]["reason"]:
            raise NotApplicable(job.params["settings"]["reason"])
        _fuse(job)
    except NotApplicable as error:
        with new_folder(job.output["model"]) as folder:
            write_json(folder / "recipe.json", {"reason": str(error), **origin(job)})
        _write_rows(job, "selection", SELECTION, [])
        _write_rows(job, "diagnostics", DIAGNOSTICS, [])
        progress(f"{_name(job)} does not apply: {error}")


def _fuse(job: Job) -> None:
    settings, began = job.params["settings"], time.monotonic()
    backbone, suite = open_backbone(job.input["model"], settings["backbone"]), Suite.of(job)
    finetuned = [Path(path) for path in job.paths("finetuned")]
    space = open_space(settings["space"], Path(job.input["model"]), job.optional("init"), finetuned, settings["frozen"])
    validation = list(suite.scored(backbone, "val", **settings["select"]))
    statistics = [Checkpoint(path) for path in job.paths("statistics")]
    chosen, best, rows = None, [], []
    for candidate in candidates(space, settings, backbone, suite, statistics):
        found = accuracies(backbone, space, candidate.merged, validation) if len(settings["grid"]) > 1 else []
        rows.append((candidate.hyperparameters, found))
        if chosen is None or sum(found) > sum(best):  # the first of equals
            chosen, best = candidate, found
    assert chosen is not None
    taken = used(statistics, settings["algorithm"], chosen.hyperparameters)
    diagnostics = chosen.merged.diagnostics
    if isinstance(chosen.merged, Merged):
        diagnostics = diagnostics | masked_individuals(backbone, space, chosen.merged, validation)
        if settings["adapt"]:
            scaling = chosen.hyperparameters[scaling_name(settings["algorithm"])]
            diagnostics |= entropies(backbone, space, chosen.merged, scaling, validation)
    recipe = {
        "hyperparameters": chosen.hyperparameters,
        "selected_on": "val" if len(rows) > 1 else "",
        "adapted_on": settings["adapt"]["adapted_on"] if settings["adapt"] else "",
        "fuse_seconds": chosen.cost.seconds + sum(float(one.metadata["seconds"]) for one in taken),
        "select_seconds": time.monotonic() - began,
        "queue_seconds": queue_seconds(),
        **allocation(),
        "peak_bytes": chosen.cost.peak_bytes,
        "extra_parameters": chosen.merged.extra_parameters,
        "diagnostics": diagnostics,
        **origin(job),
    }
    with new_folder(job.output["model"]) as folder:
        _save(folder, space, chosen.merged, settings["tasks"])
        write_json(folder / "recipe.json", recipe)
    factor = scaling_name(settings["algorithm"])
    selection = [row for one, found in rows if found for row in _selection(validation, one, found, chosen, factor)]
    _write_rows(job, "selection", SELECTION, selection)
    _write_rows(job, "diagnostics", DIAGNOSTICS, list(flat(diagnostics)))
    scored = f"validation {sum(best) / len(best):.3f}" if best else "one candidate, nothing to choose"
    progress(f"{_name(job)}: {scored}, in {recipe['select_seconds']:.0f} s")


def accuracies(backbone: Backbone, space: Space, merged: Merged | TaskModels, validation: list[Scored]) -> list[float]:
    """The accuracy on each task of the merged model, or of that task's."""
    weights = task_weights(space, merged)
    return [part.accuracy(backbone, own) for part, own in zip(validation, weights, strict=False)]


def task_weights(space: Space, merged: Merged | TaskModels) -> Iterator[dict[str, Tensor]]:
    """The weights that serve each task in turn; read once where they are the same."""
    if isinstance(merged, Merged):
        yield from repeat(on_device(space.to_weights(merged.tensors())))
        return
    for t in range(len(merged.vectors)):
        yield on_device(space.to_weights(merged.for_task(t).tensors()))


def entropies(
    backbone: Backbone, space: Space, merged: Merged, scaling: float, validation: list[Scored]
) -> dict[str, float]:
    """Mean entropy over tasks, in nats, at the coefficients that the method starts from and where it ended."""
    start = merged.vectors.map(lambda layer: layer.taus.sum(0), scaling=scaling)
    found = {}
    for name, model in {"entropy_before": start, "entropy_after": merged}.items():
        weights = on_device(space.to_weights(model.tensors()))
        means = [part.predict(backbone, weights).entropies.mean().item() for part in validation]
        found[name] = sum(means) / len(means)
    return found


def masked_individuals(
    backbone: Backbone, space: Space, merged: Merged, validation: list[Scored]
) -> dict[str, dict[str, float]]:
    """Each model's own-task accuracy under the mask learned for all, where the method has one."""
    if merged.individual is None or len(merged.vectors) != len(validation):
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


def _selection(
    validation: list[Scored], hyperparameters: dict[str, Any], found: list[float], chosen: Candidate, factor: str
) -> Iterator[dict[str, Any]]:
    """One row a task; `scaling` is the value of the hyper-parameter that is the merged task vector's factor."""
    shared = {"split": "val", "metric": "accuracy", "hyperparameters": as_text(hyperparameters)}
    shared |= {"scaling": hyperparameters.get(factor), "selected": hyperparameters == chosen.hyperparameters}
    for part, value in zip(validation, found, strict=True):
        yield shared | {"task": part.task, "value": value, "n": len(part.labels)}


def _save(folder: Path, space: Space, merged: Merged | TaskModels, tasks: list[str]) -> None:
    if isinstance(merged, Merged):
        save_tensors(folder / "model.safetensors", space.to_weights(merged.tensors()))
        return
    for t, task in enumerate(tasks):
        save_tensors(folder / task / "model.safetensors", space.to_weights(merged.for_task(t).tensors()))


def _name(job: Job) -> str:
    return f"{job.wildcards['method']} ({job.wildcards['mode']}, {job.params['settings']['space']} space)"


def _write_rows(job: Job, output: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    identity = {name: job.wildcards[name] for name in ("backbone", "mode", "space", "suite", "method")}
    found = [identity | {"seed": int(job.wildcards["seed"])} | row for row in rows]
    frame = pd.DataFrame(found, columns=[*identity, "seed", *columns])
    with new_file(job.output[output]) as path:
        frame.to_parquet(path, index=False)
