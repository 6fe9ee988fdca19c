"""Published accuracies beside the run's own: config/published/*.csv, in this project's names."""

from collections.abc import Sequence

import pandas as pd

from fusion.tables.score_rows import clean, on_own_tasks

KEYS = ["backbone", "mode", "method", "task"]
TEXT = ["paper", "family", "suite", "space", "setting", "chosen_on", "source"]
COLUMNS = [
    *("backbone", "suite", "mode", "space", "method", "task", "value", "seeds", "published", "difference"),
    *("family", "setting", "chosen_on", "paper", "source"),
]


def read_published(paths: Sequence[str]) -> pd.DataFrame:
    """The rows of all files: KEYS, TEXT and value; ValueError naming a file that is not such a table."""
    frames = []
    for path in paths:
        frame = pd.read_csv(path, keep_default_na=False, dtype=dict.fromkeys([*KEYS, *TEXT], str) | {"value": float})
        if missing := [name for name in [*KEYS, *TEXT, "value"] if name not in frame]:
            raise ValueError(f"{path}: columns {missing} are missing; got {list(frame.columns)}")
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*KEYS, *TEXT, "value"])


def make_published(placed: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """One row for each accuracy of the run and published number of the same model, method and task: COLUMNS.

    value: test accuracy, averaged over seeds; difference: value − published. chosen_on: 'test' where the paper chose a
    coefficient there. family: which fine-tuned models the number is of; of different families, differences say little.
    A fused model is compared in the same suite and space alone; references, which have neither, in any.
    """
    own = clean(on_own_tasks(placed, sorted(placed["task"].unique())), "accuracy")
    groups = [*KEYS, "suite", "space", "method_class"]
    ours = own.groupby(groups, as_index=False).agg(value=("value", "mean"), seeds=("seed", "nunique"))
    both = ours.merge(published.rename(columns={"value": "published"}), on=KEYS, suffixes=("", "_there"))
    same = (both["suite"] == both["suite_there"]) & (both["space"] == both["space_there"])
    both = both[same | (both["method_class"] == "reference")]
    both = both.assign(difference=both["value"] - both["published"])
    return both.sort_values([*COLUMNS[:6], "family", "setting"], ignore_index=True)[COLUMNS]
