"""The leaderboard: each model's average over its tasks, absolute and relative to the individual models."""

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fusion.intervals import Floats, percentile_interval, resampled_means, resampled_seeds
from fusion.tables.score_rows import GROUP, measured, on_own_tasks, ordered, suite_tasks

COLUMNS = [
    *GROUP,
    *("accuracy", "ci_low", "ci_high", "normalized", "normalized_ci_low", "normalized_ci_high", "entropy"),
    *("n_tasks", "seeds", "seed_std", "hyperparameters", "selected_on", "adapted_on", "fuse_seconds"),
    *("extra_parameters", "reason"),
]
PREDICTED = ["backbone", "mode", "space", "suite", "method", "seed", "trained_on", "task"]
RESAMPLES = 2000

Correct = dict[tuple[Any, ...], np.ndarray]
Scores = dict[Any, dict[Any, Any]]  # task -> the row of its score


def make_leaderboard(scores: pd.DataFrame, correct: Correct) -> pd.DataFrame:
    """One row per (backbone, suite, mode, space, method_class, method), COLUMNS, ordered.

    `accuracy` weighs tasks equally; `normalized` is the mean over tasks of accuracy / the accuracy of the
    task's individual model of the same mode and seed. Both have 95 % percentile intervals from a bootstrap in
    two levels: test examples, drawn within each task and the same ones for every model (so that ratios are
    paired), and seeds, drawn with replacement. With one seed the interval covers test examples only; with
    few it covers too little of the spread between seeds, which `seed_std` therefore gives on its own.
    `extra_parameters`: float32 numbers stored beyond those of one model, the most of any seed. A model that
    could not be made has a `reason` in place of numbers.
    """
    rows = [row for _, suite in scores.groupby(["backbone", "suite"]) for row in _suite_rows(suite, correct)]
    return ordered(pd.DataFrame(rows, columns=COLUMNS))


def read_correct(paths: Sequence[str | Path]) -> Correct:
    """Per model and task (a tuple of PREDICTED): was each test example, by position, classified correctly.

    Of individual models only their own tasks, the only ones that averages are made of.
    """
    found: Correct = {}
    for path in paths:
        columns = [*PREDICTED, "index", "label", "prediction"]
        frame = pd.read_parquet(path, columns=columns, filters=[("split", "==", "test")])
        needed = (frame["method"] != "individual") | (frame["trained_on"] == frame["task"])
        for key, rows in frame[needed].sort_values("index").groupby(PREDICTED):
            if key in found:
                raise ValueError(f"{path}: {_name(key)} is also in another file; remove one of them")
            found[key] = (rows["label"] == rows["prediction"]).to_numpy()
    return found


def _suite_rows(scores: pd.DataFrame, correct: Correct) -> Iterator[dict[str, Any]]:
    tasks = suite_tasks(scores)
    accuracies = on_own_tasks(measured(scores, "accuracy"), tasks)
    models = {key: _by_task(key, rows, tasks) for key, rows in accuracies.groupby([*GROUP, "seed"])}
    points, resampled = _bootstrap(list(models.values()), tasks, correct)
    column = {key: i for i, key in enumerate(models)}
    entropies = on_own_tasks(measured(scores, "entropy"), tasks).groupby(GROUP)["value"].mean()
    for group, rows in scores.groupby(GROUP):
        row = dict(zip(GROUP, group, strict=True)) | _described(rows)
        pairs = _pairs(group, column)
        if pairs:
            row |= _accuracies(points, resampled, pairs)
            row |= {"n_tasks": len(tasks), "entropy": entropies.get(group, np.nan)}
        yield {"n_tasks": 0, "seeds": 0} | row


def _by_task(key: tuple[Any, ...], rows: pd.DataFrame, tasks: Sequence[str]) -> Scores:
    missing = sorted(set(tasks) - set(rows["task"]))
    if missing or not rows["task"].is_unique:
        what = f"no test accuracy on {missing}" if missing else "several test accuracies on one task"
        raise ValueError(f"{_name(key)}: {what}, expected one on each of {list(tasks)} (in its scores)")
    return rows.set_index("task").to_dict("index")


def _bootstrap(models: list[Scores], tasks: Sequence[str], correct: Correct) -> tuple[Floats, Floats]:
    """The accuracies (tasks, models) and their resamples (tasks, resamples, models)."""
    points, resampled = [], []
    for task in tasks:
        columns = [_example_results(model[task], task, correct) for model in models]
        if len({len(column) for column in columns}) > 1:
            raise ValueError(f"task {task!r}: models have predictions for different numbers of test examples")
        examples = np.stack(columns, axis=1)  # (examples, models)
        # Seeded by the task alone, so that adding a task or a method moves no other interval.
        rng = np.random.default_rng(zlib.crc32(task.encode()))
        points.append(examples.mean(axis=0))
        resampled.append(resampled_means(examples, RESAMPLES, rng))
    return np.array(points), np.array(resampled)


def _example_results(score: dict[Any, Any], task: str, correct: Correct) -> np.ndarray:
    model = ["backbone", "measured_mode", "space", "measured_suite", "method", "seed", "trained_on"]
    key = (*(score[name] for name in model), task)
    if key not in correct:
        raise ValueError(f"no predictions of {_name(key)}, which has scores; evaluate that model again")
    if abs(correct[key].mean() - score["value"]) > 1e-6:
        got = f"accuracy {score['value']:.6f} in scores but {correct[key].mean():.6f} in predictions"
        raise ValueError(f"{_name(key)}: got {got}, expected the same; evaluate that model again")
    return correct[key]


def _pairs(group: tuple[Any, ...], column: dict[tuple[Any, ...], int]) -> list[tuple[int, int, int]]:
    """(column of a model, column of the individual models it is divided by or -1, seed), one per seed."""
    individual = (*group[:3], "", "reference", "individual")
    ceilings = {key[-1]: i for key, i in column.items() if key[:-1] == individual}
    pairs = []
    for key, i in column.items():
        if key[:-1] == group:
            # The pre-trained model has no seed of its own: it is compared with the individuals of every seed.
            seeds = [key[-1]] if group[-1] != "pretrained" else sorted(ceilings) or [key[-1]]
            pairs += [(i, ceilings.get(seed, -1), key[-1]) for seed in seeds]
    return pairs


def _accuracies(points: Floats, resampled: Floats, pairs: list[tuple[int, int, int]]) -> dict[str, Any]:
    models = [model for model, _, _ in pairs]
    averages = points[:, models].mean(axis=0)
    by_seed = {seed: average for (_, _, seed), average in zip(pairs, averages, strict=True)}
    interval = _interval(resampled[:, :, models])
    row: dict[str, Any] = {"accuracy": averages.mean(), "ci_low": interval[0], "ci_high": interval[1]}
    row |= {"seeds": len(by_seed), "seed_std": pd.Series(by_seed).std()}
    ceilings = [ceiling for _, ceiling, _ in pairs]
    if -1 in ceilings:
        return row
    with np.errstate(divide="ignore", invalid="ignore"):
        interval = _interval(resampled[:, :, models] / resampled[:, :, ceilings])
        normalized = (points[:, models] / points[:, ceilings]).mean()
    return row | {
        "normalized": normalized if np.isfinite(normalized) else np.nan,
        "normalized_ci_low": interval[0],
        "normalized_ci_high": interval[1],
    }


def _interval(resampled: Floats) -> tuple[float, float]:
    """The interval of the average over tasks and seeds, resampled: (tasks, resamples, seeds)."""
    return percentile_interval(resampled_seeds(resampled.mean(axis=0), np.random.default_rng(0)))


def _described(rows: pd.DataFrame) -> dict[str, Any]:
    """What the rows of one group say of it in words, and its cost: seeds that agree are said once."""
    chosen = rows.drop_duplicates("seed").set_index("seed")["hyperparameters"]
    if chosen.nunique() > 1:
        text = json.dumps({f"seed {seed}": json.loads(value or "{}") for seed, value in chosen.items()})
    else:
        text = chosen.iloc[0]
    said = ("selected_on", "adapted_on", "reason")
    row: dict[str, Any] = {name: ", ".join(sorted(set(rows[name]) - {""})) for name in said}
    row["fuse_seconds"] = rows.groupby("seed")["fuse_seconds"].first().mean()
    row["extra_parameters"] = rows.loc[rows["reason"] == "", "extra_parameters"].astype(float).max()
    return row | {"hyperparameters": text}


def _name(key: tuple[Any, ...]) -> str:
    return " / ".join(str(part) for part in key if part != "")
