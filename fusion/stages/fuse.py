"""Fusing the models of one suite, mode and space by one method; hyper-parameters chosen on validation data."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Generator, Tensor

from fusion.artifacts import digest, new_file, new_folder, read_json, write_json
from fusion.backbones import Backbone, open_backbone
from fusion.checkpoint import save_tensors
from fusion.cost import Cost, measured
from fusion.device import autocast, on_device
from fusion.job import Job, progress
from fusion.methods import load
from fusion.objectives import TotalEntropy
from fusion.spaces import Space, open_space
from fusion.suites import Scored, Suite
from fusion.vectors import Merged


@dataclass(frozen=True)
class Candidate:
    """One point of the grid: the merged model, and what merging cost (shared with others of another scaling)."""

    hyperparameters: dict[str, Any]
    merged: Merged
    cost: Cost


def fuse(job: Job) -> None:
    """Writes the merged model to output `model`, the candidates' scores to `selection`, and `diagnostics`.

    The folder holds the weights that differ from θ0 and recipe.json: hyper-parameters, cost and diagnostics.
    Of several candidates the one with the best mean validation accuracy is written.
    """
    settings, began = job.params["settings"], time.monotonic()
    backbone, suite = open_backbone(job.input["model"], settings["backbone"]), Suite.of(job)
    finetuned = [Path(path) for path in job.paths("finetuned")]
    space = open_space(settings["space"], Path(job.input["model"]), job.optional("init"), finetuned, settings["frozen"])
    validation = suite.scored(backbone, "val", **settings["select"])
    scored: list[tuple[Candidate, list[float]]] = []
    for candidate in candidates(space, settings, backbone, suite):
        scored.append((candidate, accuracies(backbone, space, candidate.merged, validation)))
    chosen, best = max(scored, key=lambda one: sum(one[1]))  # the first of equals
    diagnostics = chosen.merged.diagnostics | masked_individuals(backbone, space, chosen.merged, validation)
    if settings["adapt"]:
        diagnostics |= entropies(backbone, space, chosen, validation)
    recipe = {
        "hyperparameters": chosen.hyperparameters,
        "selected_on": "val" if len(scored) > 1 else "",
        "adapted_on": settings["adapt"]["adapted_on"] if settings["adapt"] else "",
        "fuse_seconds": chosen.cost.seconds,
        "select_seconds": time.monotonic() - began,
        "peak_bytes": chosen.cost.peak_bytes,
        "extra_parameters": 0,
        "diagnostics": diagnostics,
        **origin(job, finetuned),
    }
    with new_folder(job.output["model"]) as folder:
        save_tensors(folder / "model.safetensors", space.to_weights(chosen.merged.tensors()))
        write_json(folder / "recipe.json", recipe)
    _write_rows(job, "selection", [row for one, found in scored for row in _selection(validation, one, found, chosen)])
    _write_rows(job, "diagnostics", list(flat(diagnostics)))
    where = f"{job.wildcards['mode']}, {settings['space']} space"
    progress(
        f"{job.wildcards['method']} ({where}): validation {sum(best) / len(best):.3f} "
        f"in {recipe['select_seconds']:.0f} s"
    )


def candidates(space: Space, settings: Mapping[str, Any], backbone: Backbone, suite: Suite) -> Iterator[Candidate]:
    """Every candidate of the grid, merged; those that differ only in a factor of the task vector are merged once."""
    held: dict[str, tuple[Merged, Cost]] = {}
    for one in settings["grid"]:
        rest = _text({name: value for name, value in one.items() if name != "scaling"})
        if rest not in held or held[rest][0].scaling is None:
            with measured() as cost:
                merged = merge(space, settings, one, backbone, suite).held()
            held = {rest: (merged, cost)}
        merged, cost = held[rest]
        yield Candidate(one, merged if merged.scaling is None else merged.at(one["scaling"]), cost)


def merge(
    space: Space, settings: Mapping[str, Any], hyperparameters: Mapping[str, Any], backbone: Backbone, suite: Suite
) -> Merged:
    """The merged model; an adaptive method gets the entropy on batches that start anew for every candidate."""
    adapt, seed = settings["adapt"], settings["seed"]
    needs = [total_entropy(backbone, suite, space, seed=seed, **adapt)] if adapt else []
    return load(settings["algorithm"])(space.vectors, *needs, rng=Generator().manual_seed(seed), **hyperparameters)


def total_entropy(
    backbone: Backbone, suite: Suite, space: Space, *, adapted_on: str, batch_size: int, seed: int
) -> TotalEntropy:
    """The entropy of the merged model on the suite's unlabelled inputs of the split `adapted_on`."""

    def logits(weights: Mapping[str, Tensor], task: int, batch: Any) -> Tensor:
        with autocast():
            return backbone.logits(weights, batch, suite.heads[task]).float()

    streams = suite.unlabelled(backbone, adapted_on, batch_size, seed)
    return TotalEntropy(lambda params: on_device(space.to_weights(params)), logits, streams)


def accuracies(backbone: Backbone, space: Space, merged: Merged, validation: list[Scored]) -> list[float]:
    """The merged model's accuracy on each task."""
    weights = on_device(space.to_weights(merged.tensors()))
    return [part.accuracy(backbone, weights) for part in validation]


def entropies(backbone: Backbone, space: Space, chosen: Candidate, validation: list[Scored]) -> dict[str, float]:
    """Mean entropy over tasks, in nats, at the coefficients that the method starts from and where it ended."""
    start = space.vectors.map(lambda layer: layer.taus.sum(0), scaling=chosen.hyperparameters["scaling"])
    found = {}
    for name, merged in {"entropy_before": start, "entropy_after": chosen.merged}.items():
        weights = on_device(space.to_weights(merged.tensors()))
        means = [part.predict(backbone, weights).entropies.mean().item() for part in validation]
        found[name] = sum(means) / len(means)
    return found


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


def origin(job: Job, finetuned: list[Path]) -> dict[str, str]:
    """Hashes of the settings and of the code that made the merged model, its fine-tuned models included."""
    made = [read_json(folder / "training.json") for folder in finetuned]
    return {
        "config_hash": digest([job.params["settings"], [one["config_hash"] for one in made]]),
        "code_version": digest([job.params["code"], [one["code_version"] for one in made]]),
    }


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
    validation: list[Scored], candidate: Candidate, found: list[float], chosen: Candidate
) -> Iterator[dict[str, Any]]:
    shared = {"split": "val", "metric": "accuracy", "hyperparameters": _text(candidate.hyperparameters)}
    for part, value in zip(validation, found, strict=True):
        yield shared | {"task": part.task, "value": value, "n": len(part.labels), "selected": candidate is chosen}


def _text(hyperparameters: Mapping[str, Any]) -> str:
    return json.dumps(hyperparameters, sort_keys=True)


def _write_rows(job: Job, output: str, rows: list[dict[str, Any]]) -> None:
    identity = {name: job.wildcards[name] for name in ("backbone", "mode", "space", "suite", "method")}
    frame = pd.DataFrame([identity | {"seed": int(job.wildcards["seed"])} | row for row in rows])
    with new_file(job.output[output]) as path:
        frame.to_parquet(path, index=False)
