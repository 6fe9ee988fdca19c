"""The tables of a run, made from its scores, predictions, selections and similarities alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fusion.artifacts import new_folder
from fusion.job import Job
from fusion.tables.costs import make_costs, too_much_asked
from fusion.tables.leaderboard import make_leaderboard, read_correct
from fusion.tables.modelled import make_modelled
from fusion.tables.published import make_published
from fusion.tables.robustness import make_robustness
from fusion.tables.score_rows import GROUP, MEASUREMENT, SCORES, measured, ordered, place_references, suite_tasks
from fusion.tables.subsets import make_subsets

TABLES = (
    *("scores", "leaderboard", "per_task", "robustness", "subsets", "selection", "costs", "similarity"),
    *("diagnostics", "published", "modelled"),
)
SELECTION = [
    *("backbone", "mode", "space", "suite", "method", "seed", "hyperparameters", "scaling", "task", "split", "metric"),
    *("value", "n", "selected"),
]
DIAGNOSTICS = ["backbone", "suite", "mode", "space", "method", "seed", "name", "key", "value"]
SIMILARITY = ["backbone", "mode", "space", "suite", "seed", "task_a", "task_b", "cosine"]


def make_tables(job: Job) -> None:
    """Writes every table of TABLES as {name}.parquet, .csv and .md into the folder `output.tables`.

    Input: lists of parquet files scores, predictions, selection, diagnostics, similarity, of which the last three may
    be empty. Params: published, rows of numbers to compare with (fusion.published); subsets {name: suite}; modelled,
    what jobs were reckoned to take, and benchmarks, the folder of what they took.
    """
    scores = _read(job.paths("scores"), SCORES)
    if measured(scores, "accuracy").empty:
        raise ValueError("got no accuracy on test data, expected some (in the files of input.scores)")
    scores = scores.sort_values(MEASUREMENT, kind="stable").reset_index(drop=True)
    subsets = job.params["subsets"]
    placed = place_references(scores, subsets)
    whole = placed[~placed["suite"].isin(subsets)]
    leaderboard = make_leaderboard(whole, read_correct(job.paths("predictions")))
    tables = {
        "scores": scores,
        "leaderboard": leaderboard,
        "per_task": make_per_task(placed),
        "subsets": make_subsets(placed, subsets),
        "selection": make_selection(_read(job.paths("selection"), SELECTION)),
        "costs": make_costs(scores),
        "similarity": make_similarity(_read(job.paths("similarity"), SIMILARITY)),
        "diagnostics": make_diagnostics(job.paths("diagnostics")),
        "published": make_published(whole, job.params["published"]),
        "robustness": make_robustness(leaderboard, whole),
        "modelled": make_modelled(job.params["modelled"], Path(job.params["benchmarks"])),
    }
    if warning := too_much_asked(tables["costs"]):
        print(warning)
    with new_folder(job.output["tables"]) as folder:
        for name in TABLES:
            tables[name].to_parquet(folder / f"{name}.parquet", index=False)
            tables[name].to_csv(folder / f"{name}.csv", index=False)
            (folder / f"{name}.md").write_text(markdown(tables[name]), encoding="utf-8")


def make_per_task(placed: pd.DataFrame) -> pd.DataFrame:
    """One row per model, individual models one by one: its test accuracy on each task, averaged over seeds.

    Columns: GROUP, trained_on, seeds, average (over the tasks of the suite), seed_std (of the average),
    unseen_average (over tasks that models were tested on but not merged from; absent without any), and one per task.
    """
    keys = [*GROUP, "trained_on"]
    frames = []
    for _, suite in placed.groupby(["backbone", "suite"]):
        tasks = suite_tasks(suite)
        suite = suite[(suite["method"] != "individual") | suite["trained_on"].isin(tasks)]
        wide = measured(suite, "accuracy").set_index([*keys, "seed", "task"])["value"].unstack("task")
        average = wide[tasks].mean(axis=1, skipna=False)
        spread = average.groupby(keys).agg(seeds="size", average="mean", seed_std="std")
        if unseen := [task for task in wide if task not in tasks]:
            spread["unseen_average"] = wide[unseen].mean(axis=1).groupby(keys).mean()
        failed = suite.loc[suite["reason"] != "", keys].drop_duplicates().set_index(keys)
        table = spread.join(wide.groupby(keys).mean())
        table = table.reindex(table.index.union(failed.index)).reset_index()
        frames.append(table.fillna({"seeds": 0}).astype({"seeds": int}))
    return ordered(pd.concat(frames, ignore_index=True))


def make_selection(selection: pd.DataFrame) -> pd.DataFrame:
    """One row per candidate of a grid: its value on validation data, averaged over tasks and then over seeds.

    Columns: backbone, suite, mode, space, method, split, metric, hyperparameters, scaling (or nan), value,
    seed_std, n_tasks, seeds, selected_seeds (how many seeds chose it).
    """
    keys = ["backbone", "suite", "mode", "space", "method", "split", "metric", "hyperparameters"]
    by_seed = selection.groupby([*keys, "seed"], as_index=False).agg(
        scaling=("scaling", "first"), value=("value", "mean"), n_tasks=("task", "nunique"), selected=("selected", "max")
    )
    table = by_seed.groupby(keys, as_index=False).agg(
        scaling=("scaling", "first"),
        value=("value", "mean"),
        seed_std=("value", "std"),
        n_tasks=("n_tasks", "max"),
        seeds=("seed", "nunique"),
        selected_seeds=("selected", "sum"),
    )
    return table.astype({"scaling": float}).sort_values([*keys[:-1], "scaling", "hyperparameters"], ignore_index=True)


def make_similarity(similarity: pd.DataFrame) -> pd.DataFrame:
    """The cosine of each pair of task vectors, averaged over seeds, with their spread and number."""
    keys = ["backbone", "suite", "mode", "space", "task_a", "task_b"]
    return similarity.groupby(keys, as_index=False).agg(
        cosine=("cosine", "mean"), seed_std=("cosine", "std"), seeds=("seed", "nunique")
    )


def make_diagnostics(paths: Sequence[str]) -> pd.DataFrame:
    """What fusions say of themselves, one row a number: learned coefficients, densities of masks, entropies.

    A method with nothing to say has an empty file and no row.
    """
    frames = [frame for path in paths if len(frame := pd.read_parquet(path))]
    return pd.concat(frames, ignore_index=True)[DIAGNOSTICS] if frames else pd.DataFrame(columns=DIAGNOSTICS)


def markdown(table: pd.DataFrame) -> str:
    """The table as a Markdown pipe table, numbers to four significant digits and missing ones empty."""
    right = [pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes]
    lines = [list(table.columns), ["---:" if number else "---" for number in right]]
    lines += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _read(paths: Sequence[str], columns: list[str]) -> pd.DataFrame:
    frames = []
    for path in paths:
        frame = pd.read_parquet(path)
        if frame.empty:  # of a method that could not run: its scores say why
            continue
        missing = [name for name in columns if name not in frame]
        if missing:
            raise ValueError(f"{path}: columns {missing} are missing; delete it, so that it is made again")
        holes = [name for name in GROUP if name in columns and frame[name].isna().any()]
        if holes:  # pandas would drop these rows from every group
            raise ValueError(f"{path}: got missing values in {holes}, expected '' where there is none")
        frames.append(frame[columns])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
