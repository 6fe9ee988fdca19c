"""Score, prediction, selection and similarity files with chosen contents, as stages would write them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fusion.allocation import ALLOCATION
from fusion.job import Job

KINDS = ("scores", "predictions", "selection", "diagnostics", "similarity")
CLASSES = {
    **{
        "pretrained": "reference",
        "individual": "reference",
        "multitask": "reference",
        "task_arithmetic": "data-free",
        "ties": "data-free",
    },
    **{"tsv_m": "data-free", "adamerging": "unlabelled", "concrete_task_arithmetic": "unlabelled"},
    **{"fisher": "labelled", "emr": "multi-model"},
}


def add_model(folder: Path, method: str, correct: dict[str, np.ndarray], **described: Any) -> None:
    """Writes the scores and predictions of one model, correct: was each test example right, per task."""
    model = {
        **{"domain": "text", "backbone": "tiny", "mode": "full", "space": "", "suite": "pair", "n_tasks": 2},
        **{"method": method, "method_class": CLASSES[method], "hyperparameters": "{}", "selected_on": ""},
        **{"adapted_on": "", "seed": 0, "trained_on": "", "seen": True, "finetune_seconds": np.nan},
        **{
            "fuse_seconds": 2.0,
            "select_seconds": np.nan,
            "queue_seconds": 0.0,
            "evaluate_seconds": 3.0,
            "evaluate_queue_seconds": 1.0,
            "evaluate_peak_bytes": 2000,
            "peak_bytes": 1000,
            "extra_parameters": 0,
            "corruption": "",
        },
        **dict.fromkeys((f"{step}{name}" for step in ("", "evaluate_") for name in ALLOCATION), np.nan),
        **{"config_hash": "c0ffee", "code_version": "0.1.0", "reason": "", "entropy": 0.5, **described},
    }
    entropy = model.pop("entropy")
    scores, predictions = [], []
    for task, right in correct.items():
        row = model | {
            "task": task,
            "split": "test",
            "n": len(right),
            "data_hash": f"hash-{task}",
        }
        scores += [
            row | {"metric": "accuracy", "value": right.mean()},
            row | {"metric": "entropy", "value": entropy},
        ]
        keys = {k: model[k] for k in ("backbone", "mode", "space", "suite", "method", "seed", "trained_on")}
        examples = {
            "index": np.arange(len(right)),
            "label": 1,
            "prediction": right.astype(int),
            "entropy": entropy,
        }
        predictions.append(pd.DataFrame({**keys, "task": task, "split": "test", **examples}))
    table = pd.DataFrame(scores).assign(ci_low=np.nan, ci_high=np.nan)
    parts = (
        model["mode"],
        model["space"],
        model["suite"],
        method,
        f"seed{model['seed']}",
        model["trained_on"],
    )
    name = "-".join(p for p in parts if p) + ".parquet"
    write(folder / "scores" / name, table)
    # Shuffled, since nothing promises an order of the rows of a file.
    write(folder / "predictions" / name, pd.concat(predictions).sample(frac=1, random_state=0))


def add_entropies(folder: Path, method: str, fall: list[tuple[float, float]], **where: Any) -> None:
    """Writes the diagnostics of an adaptive method: its entropy before and after adaptation, a pair a seed."""
    keys = {"backbone": "tiny", "suite": "pair", "mode": "full", "space": "weight", "method": method, **where}
    rows = [
        keys | {"seed": seed, "name": name, "key": "", "value": value}
        for seed, (before, after) in enumerate(fall)
        for name, value in (("entropy_before", before), ("entropy_after", after))
    ]
    write(folder / "diagnostics" / f"{method}-{keys['mode']}-{keys['space']}.parquet", pd.DataFrame(rows))


def add_failure(folder: Path, method: str, reason: str, **described: Any) -> None:
    """Writes what there is of a model that could not be made: one row with a missing value and the reason."""
    add_model(folder, method, {"": np.array([True])}, reason=reason, **described)
    found = [p for p in (folder / "scores").glob("*.parquet") if method in p.name]
    for path in found:
        table = pd.read_parquet(path)
        if (table["reason"] == reason).all():
            missing = dict.fromkeys(("value", "fuse_seconds", "select_seconds"), np.nan)
            write(path, table[:1].assign(n=0, **missing))
            predictions = folder / "predictions" / path.name
            write(predictions, pd.read_parquet(predictions)[:0])


def first(k: int, n: int) -> np.ndarray:
    """Whether each of n examples is right: the first k are."""
    return np.arange(n) < k


def write(path: Path, table: pd.DataFrame) -> None:
    """Writes a parquet file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)


def tables_job(folder: Path, subsets: Mapping[str, str] | None = None) -> Job:
    """The job that makes the tables of every file in the folder, some of suites that are subsets {name: suite}."""
    params = {"published": [], "subsets": dict(subsets or {}), "modelled": [], "benchmarks": str(folder / "benchmarks")}
    inputs = {kind: sorted(str(p) for p in (folder / kind).glob("**/*.parquet")) for kind in KINDS}
    return Job("fusion.stages.tables:make_tables", inputs, {"tables": str(folder / "tables")}, params)


def add_run(folder: Path, tasks: tuple[str, ...] = ("trec", "sms_spam", "movie_sentiment", "newsgroups")) -> None:
    """Writes a run of plausible size and shape: three modes, both spaces, several methods, and two seeds of full."""
    rng = np.random.default_rng(0)
    quality = {"pretrained": 0.5, "individual": 0.86, "task_arithmetic": 0.7, "ties": 0.68, "tsv_m": 0.74}
    quality |= {"adamerging": 0.76, "concrete_task_arithmetic": 0.73}
    suite = {"suite": "text4", "n_tasks": len(tasks)}

    def answers(p: float) -> dict[str, np.ndarray]:
        return {task: rng.random(400) < p + 0.03 * i for i, task in enumerate(tasks)}

    add_model(folder, "pretrained", answers(0.5), mode="", entropy=1.2, **suite)
    for mode in ("full", "lora", "l_lora"):
        for seed in (0, 1) if mode == "full" else (0,):
            for task in tasks:
                right = {t: r if t != task else rng.random(400) < 0.86 for t, r in answers(0.55).items()}
                own = {"trained_on": task, "finetune_seconds": 20 + 5 * rng.random(), "entropy": 0.3}
                add_model(folder, "individual", right, mode=mode, seed=seed, **own, **suite)
            cost = {"finetune_seconds": 100.0, "fuse_seconds": np.nan}
            add_model(folder, "multitask", answers(0.84), mode=mode, seed=seed, entropy=0.3, **cost, **suite)
            for space in ("weight",) if mode == "full" else ("weight", "adapter"):
                where = {"mode": mode, "space": space, "seed": seed, **suite}
                for method in list(quality)[2:]:
                    adaptive = CLASSES[method] == "unlabelled"
                    cost = {"fuse_seconds": 40.0 if adaptive else 1.5, "select_seconds": 60.0}
                    cost |= {"peak_bytes": 9e8 if adaptive else 2e8}
                    said = {"adapted_on": "val" if adaptive else "", "selected_on": "" if adaptive else "val"}
                    p = quality[method] - 0.04 * (mode == "lora") - 0.05 * (space == "adapter")
                    found = {
                        "hyperparameters": json.dumps({"scaling": 0.8}),
                        "entropy": 0.4 if adaptive else 0.7,
                    }
                    add_model(folder, method, answers(p), **where, **cost, **said, **found)
                _add_grids(folder, tasks, where, rng)
                _add_similarity(folder, tasks, where, rng)
    add_failure(folder, "tsv_m", "needs two-dimensional tensors", mode="l_lora", space="none", **suite)


def _add_grids(folder: Path, tasks: tuple[str, ...], where: dict[str, Any], rng: np.random.Generator) -> None:
    keys = {k: where[k] for k in ("mode", "space", "suite", "seed")} | {"backbone": "tiny"}
    for method, peak in (("task_arithmetic", 0.8), ("ties", 1.0)):
        grid = [round(0.2 * i, 1) for i in range(8)]
        rows = [
            {"hyperparameters": json.dumps({"scaling": s}), "scaling": s, "task": task, "selected": s == peak, "n": 400}
            | {"value": 0.7 - 0.2 * (s - peak) ** 2 + 0.02 * rng.standard_normal()}
            for s in grid
            for task in tasks
        ]
        table = pd.DataFrame(rows).assign(method=method, split="val", metric="accuracy", **keys)
        write(folder / "selection" / f"{method}-{'-'.join(map(str, keys.values()))}.parquet", table)


def _add_similarity(folder: Path, tasks: tuple[str, ...], where: dict[str, Any], rng: np.random.Generator) -> None:
    keys = {k: where[k] for k in ("mode", "space", "suite", "seed")} | {"backbone": "tiny"}
    rows = [(a, b, 1.0 if a == b else 0.1 * rng.standard_normal()) for a in tasks for b in tasks if a <= b]
    table = pd.DataFrame(rows, columns=["task_a", "task_b", "cosine"]).assign(**keys)
    write(folder / "similarity" / f"{'-'.join(map(str, keys.values()))}.parquet", table)
