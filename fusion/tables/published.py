"""Published accuracies beside the run's own."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from fusion.published import PublishedRow
from fusion.tables.score_rows import clean, measured, on_own_tasks, suite_tasks

KEYS = ["backbone", "mode", "method", "task", "n_tasks"]
MODEL = ["backbone", "suite", "mode", "space", "method_class", "method"]
COLUMNS = [
    *("backbone", "suite", "mode", "space", "method", "task", "n_tasks", "value", "seeds", "published", "difference"),
    *("family", "setting", "chosen_on", "protocol", "paper", "source"),
]


def make_published(placed: pd.DataFrame, published: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row for each accuracy of the run and published number of the same model, method and task: COLUMNS.

    value: test accuracy on clean data, averaged over seeds; difference: value − published. task: '' for an average over
    the suite's n_tasks tasks. chosen_on: 'test' where the paper chose a coefficient there. family: which fine-tuned
    models the number is of; of different families, differences say little. protocol: how pictures and prompts were read
    (`PublishedRow`). A fused model is compared in the same suite
    and space alone; references, which have neither, in any, but their averages in the same suite.
    """
    theirs = pd.DataFrame(published, columns=list(PublishedRow.model_fields)).astype({"n_tasks": int})
    own = measured(on_own_tasks(clean(placed), sorted(placed["task"].unique())), "accuracy")
    ours = own.groupby([*MODEL, "task"], as_index=False).agg(value=("value", "mean"), seeds=("seed", "nunique"))
    ours = pd.concat([ours.assign(n_tasks=1), _averages(ours, placed)], ignore_index=True)
    both = ours.merge(theirs.rename(columns={"value": "published"}), on=KEYS, suffixes=("", "_there"))
    suite, space = both["suite"] == both["suite_there"], both["space"] == both["space_there"]
    reference = both["method_class"] == "reference"
    both = both[(suite & (space | reference)) | (reference & (both["task"] != ""))]
    both = both.assign(difference=both["value"] - both["published"])
    return both.sort_values([*COLUMNS[:6], "family", "setting"], ignore_index=True)[COLUMNS]


def _averages(ours: pd.DataFrame, placed: pd.DataFrame) -> pd.DataFrame:
    """The mean over all tasks of its suite of every model that was scored on all of them."""
    found = []
    for (backbone, suite), scores in placed.groupby(["backbone", "suite"]):
        tasks = suite_tasks(scores)
        rows = ours[(ours["backbone"] == backbone) & (ours["suite"] == suite) & ours["task"].isin(tasks)]
        mean = rows.groupby(MODEL, as_index=False).agg(
            value=("value", "mean"), seeds=("seeds", "min"), n_tasks=("task", "nunique")
        )
        found.append(mean[(mean["n_tasks"] == len(tasks)) & (mean["n_tasks"] > 1)].assign(task=""))
    return pd.concat(found, ignore_index=True) if found else ours[:0].assign(n_tasks=0)
