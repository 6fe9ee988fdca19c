"""Accuracy on clean and on corrupted pictures, side by side."""

from collections.abc import Iterator

import pandas as pd

from fusion.tables.score_rows import measured, ordered, suite_tasks

KEYS = ["backbone", "suite", "mode", "space", "method_class", "method"]
CLEAN = "clean"
AVERAGE = "average"


def make_robustness(leaderboard: pd.DataFrame, placed: pd.DataFrame) -> pd.DataFrame:
    """One row per model of tasks that were tested corrupted: its accuracy, averaged over tasks and seeds.

    Columns: KEYS, where suite is the first by name of those with these tasks, on clean pictures if one is; clean, if
    the run has such a suite; one a corruption, as 'motion_blur-2'; average, over the corruptions. Rows are ordered by
    falling average. Empty where nothing was corrupted.
    """
    frames = [_table(leaderboard, suites) for suites in _families(placed)]
    if not frames:
        return pd.DataFrame(columns=[*KEYS, AVERAGE])
    return ordered(pd.concat(frames, ignore_index=True))


def corruptions(robustness: pd.DataFrame) -> list[str]:
    """The columns that hold accuracies under a corruption."""
    return [str(name) for name in robustness if name not in (*KEYS, CLEAN, AVERAGE)]


def _families(placed: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The suites with the same tasks, where one is corrupted: backbone, suite, condition; the clean ones first."""
    rows = measured(placed, "accuracy").groupby(["backbone", "suite"])
    suites = pd.DataFrame(
        [
            {"backbone": backbone, "suite": suite, "condition": part["corruption"].max(), "tasks": suite_tasks(part)}
            for (backbone, suite), part in rows
        ]
    ).sort_values(["condition", "suite"])
    for _, family in suites.groupby(["backbone", suites["tasks"].map(tuple)]):
        if family["condition"].any():
            yield family


def _table(leaderboard: pd.DataFrame, family: pd.DataFrame) -> pd.DataFrame:
    rows = leaderboard[leaderboard["accuracy"].notna()].merge(family, on=["backbone", "suite"])
    rows = rows.assign(condition=rows["condition"].replace("", CLEAN), suite=family["suite"].iloc[0])
    wide = rows.pivot_table(index=KEYS, columns="condition", values="accuracy", aggfunc="first").reset_index()
    found = corruptions(wide)
    clean = [CLEAN] if CLEAN in wide else []
    return wide.assign(**{AVERAGE: wide[found].mean(axis=1, skipna=False)})[[*KEYS, *clean, *found, AVERAGE]]
