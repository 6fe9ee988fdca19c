"""Scoring one model on every task of a suite, example by example."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from fusion.allocation import ALLOCATION, allocation
from fusion.artifacts import digest, new_file, read_json
from fusion.backbones import open_backbone
from fusion.cost import measured
from fusion.device import on_device
from fusion.intervals import wilson
from fusion.job import Job, progress, queue_seconds
from fusion.protocol import TOLERANCE
from fusion.scoring import Predictions
from fusion.spaces import read_weights
from fusion.suites import Scored, Suite

# A model that could not be made has one row, without a number.
NOT_MEASURED = {
    **{"split": "test", "data_hash": "", "seen": True, "task": "", "metric": "accuracy", "n": 0},
    **dict.fromkeys(("value", "ci_low", "ci_high", "evaluate_seconds", "evaluate_queue_seconds"), float("nan")),
    **dict.fromkeys((f"evaluate_{name}" for name in ALLOCATION), float("nan")),
    "evaluate_peak_bytes": -1,
}
PREDICTIONS = {
    **dict.fromkeys(("backbone", "mode", "space", "suite", "method"), "str"),
    **{"seed": "int64", "trained_on": "str", "task": "str", "split": "str", "index": "int64"},
    **{"label": "int64", "prediction": "int64", "entropy": "float32"},
}


def evaluate(job: Job) -> None:
    """Writes one row a measurement to output `scores`, and one a test example to `predictions`.

    Input `evaluated` is a fine-tuned or fused folder; without it the pre-trained model is scored. Every task that it
    has a model for is scored on test, and on val the task that it was trained on, to compare the two. A fusion that
    has a reason for not being there gets one row that says so.
    """
    folder = job.optional("evaluated")
    row = _identity(job) | _facts(job, folder)
    if row["reason"]:
        _write(job, [row | NOT_MEASURED], [])
        progress(f"{_name(row)}: does not apply")
        return
    with measured() as cost:
        scores, examples = _scored(job, row, folder)
    spent = {"seconds": cost.seconds, "queue_seconds": queue_seconds(), "peak_bytes": cost.peak_bytes}
    spent |= dict.fromkeys(ALLOCATION, float("nan")) | allocation()
    spent = {f"evaluate_{name}": value for name, value in spent.items()}
    scores = [one | spent for one in scores]
    _write(job, scores, examples)
    own = [s["value"] for s in scores if s["metric"] == "accuracy" and s["split"] == "test"]
    progress(f"{_name(row)}: mean test accuracy {sum(own) / len(own):.3f}")
    for line in _far_from_published(scores, job.params["settings"]["zero_shot"]):
        progress(line)


def _scored(job: Job, row: dict[str, Any], folder: Path | None) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
    """The measurements of the model on every task, and its predictions."""
    settings = job.params["settings"]
    backbone, suite = open_backbone(job.input["model"], settings["backbone"]), Suite.of(job)
    weights = _weights(Path(job.input["model"]), folder)
    limit, size = settings["evaluate"]["examples"], settings["evaluate"]["batch_size"]
    scores, examples = [], []
    for split, tasks in {"test": _served(folder, suite.tasks), "val": [row["trained_on"]]}.items():
        for part in suite.only(*tasks).scored(backbone, split, limit, size):
            found = part.predict(backbone, weights(part.task))
            seen = part.task not in settings["unseen"]
            where = {"split": split, "data_hash": part.fingerprint, "seen": seen}
            if split != "test":  # which alone is ever corrupted
                where["corruption"] = ""
            scores += [row | where | one for one in _measured(part, found)]
            examples.append(_examples(row, split, part, found))
    return scores, examples


def _far_from_published(scores: list[dict[str, Any]], published: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """A warning for every task on which any published accuracy of the pre-trained model is far away.

    The wrong class order, prompts or normalization show here first, before anything is fine-tuned.
    """
    for row in scores:
        known = published.get(row["task"], ()) if row["metric"] == "accuracy" else ()
        if any(abs(row["value"] - value) > TOLERANCE for value in known):
            said = ", ".join(f"{100 * value:.1f}" for value in known)
            yield (
                f"WARNING: {100 * row['value']:.1f} % zero-shot on {row['task']}, published {said} %; check its class "
                "names, their order, the prompts and the normalization before fine-tuning on it"
            )


def _served(folder: Path | None, tasks: list[str]) -> list[str]:
    """The tasks that there is a model for: a method of one model a task has none for those that it did not merge."""
    own = [task for task in tasks if folder is not None and (folder / task).is_dir()]
    return own or tasks


def _weights(pretrained: Path, folder: Path | None) -> Callable[[str], dict[str, Tensor]]:
    """The weights that serve a task: those of the folder, or of the task's folder within it; the last are kept."""

    @lru_cache(maxsize=1)
    def read(own: Path) -> dict[str, Tensor]:
        return on_device(read_weights(pretrained, own))

    if folder is None:
        return lambda task: {}
    return lambda task: read(folder / task if (folder / task).is_dir() else folder)


def _write(job: Job, scores: list[dict[str, Any]], examples: list[pd.DataFrame]) -> None:
    with new_file(job.output["scores"]) as path:
        pd.DataFrame(scores).to_parquet(path, index=False)
    predictions = pd.concat(examples) if examples else pd.DataFrame(columns=list(PREDICTIONS))
    with new_file(job.output["predictions"]) as path:
        predictions.astype(PREDICTIONS).to_parquet(path, index=False)


def _name(row: dict[str, Any]) -> str:
    return " ".join(part for part in (row["mode"], row["method"], row["trained_on"]) if part)


def _identity(job: Job) -> dict[str, Any]:
    settings, wildcards = job.params["settings"], job.wildcards
    return {
        "domain": settings["domain"],
        "backbone": wildcards["backbone"],
        "mode": wildcards.get("mode", ""),
        "space": wildcards.get("space", ""),
        "suite": wildcards["suite"],
        "n_tasks": settings["n_tasks"],
        "method": settings["method"],
        "method_class": settings["method_class"],
        "seed": int(wildcards.get("seed", 0)),
        "trained_on": wildcards.get("task", ""),
        "corruption": settings["corruption"],
    }


def _facts(job: Job, folder: Path | None) -> dict[str, Any]:
    """What the folder says of its making: a fusion's recipe, or a fine-tuning's."""
    recipe = read_json(folder / "recipe.json") if folder and (folder / "recipe.json").is_file() else {}
    training = read_json(folder / "training.json") if folder and (folder / "training.json").is_file() else {}
    made = recipe or training
    return {
        "config_hash": digest([job.params["settings"], made.get("config_hash")]),
        "code_version": digest([job.params["code"], made.get("code_version")]),
        "hyperparameters": json.dumps(recipe.get("hyperparameters", {}), sort_keys=True),
        "selected_on": recipe.get("selected_on", ""),
        "adapted_on": recipe.get("adapted_on", ""),
        "finetune_seconds": training.get("seconds", float("nan")),
        "fuse_seconds": recipe.get("fuse_seconds", float("nan")),
        "queue_seconds": recipe.get("queue_seconds", training.get("queue_seconds", 0.0)),
        "select_seconds": recipe.get("select_seconds", float("nan")),
        "peak_bytes": recipe.get("peak_bytes", training.get("peak_bytes", -1)),
        "extra_parameters": recipe.get("extra_parameters", 0),
        **{name: made.get(name, float("nan")) for name in ALLOCATION},
        "reason": recipe.get("reason", ""),
    }


def _measured(part: Scored, found: Predictions) -> list[dict[str, Any]]:
    n, correct = len(part.labels), found.correct(part.labels)
    low, high = wilson(correct, n)
    mean = found.entropies.mean().item()
    half = 1.96 * found.entropies.std(correction=0).item() / n**0.5
    return [
        {"task": part.task, "metric": "accuracy", "value": correct / n, "n": n, "ci_low": low, "ci_high": high},
        {"task": part.task, "metric": "entropy", "value": mean, "n": n, "ci_low": mean - half, "ci_high": mean + half},
    ]


def _examples(row: dict[str, Any], split: str, part: Scored, found: Predictions) -> pd.DataFrame:
    names = ("backbone", "mode", "space", "suite", "method", "seed", "trained_on")
    columns = {"index": range(len(part.labels)), "label": part.labels, "prediction": found.labels}
    columns["entropy"] = found.entropies
    return pd.DataFrame({name: row[name] for name in names} | {"task": part.task, "split": split} | columns)
