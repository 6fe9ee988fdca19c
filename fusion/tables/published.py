"""Published accuracies beside the run's own."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from fusion.published import PublishedRow
from fusion.tables.score_rows import clean, measured, on_own_tasks

KEYS = ["backbone", "mode", "method", "task"]
COLUMNS = [
    *("backbone", "suite", "mode", "space", "method", "task", "value", "seeds", "published", "difference"),
    *("family", "setting", "chosen_on", "paper", "source"),
]


def make_published(placed: pd.DataFrame, published: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row for each accuracy of the run and published number of the same model, method and task: COLUMNS.

    value: test accuracy on clean data, averaged over seeds; difference: value − published. chosen_on: 'test' where the
    paper chose a coefficient there. family: which fine-tuned models the number is of; of different families,
    differences say little.
    A fused model is compared in the same suite and space alone; references, which have neither, in any.
    """
    theirs = pd.DataFrame(published, columns=list(PublishedRow.model_fields))
    own = measured(on_own_tasks(clean(placed), sorted(placed["task"].unique())), "accuracy")
    groups = [*KEYS, "suite", "space", "method_class"]
    ours = own.groupby(groups, as_index=False).agg(value=("value", "mean"), seeds=("seed", "nunique"))
    both = ours.merge(theirs.rename(columns={"value": "published"}), on=KEYS, suffixes=("", "_there"))
    same = (both["suite"] == both["suite_there"]) & (both["space"] == both["space_there"])
    both = both[same | (both["method_class"] == "reference")]
    both = both.assign(difference=both["value"] - both["published"])
    return both.sort_values([*COLUMNS[:6], "family", "setting"], ignore_index=True)[COLUMNS]
