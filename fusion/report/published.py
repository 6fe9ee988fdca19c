"""Published numbers beside the run's own as the page shows them: a table a family, none of two in one."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from fusion.tables.labels import in_space, label, percent, points
from fusion.tables.score_rows import by_place

ABOUT_FAMILY = {
    "task arithmetic": "of the checkpoints that the authors of task arithmetic published",
    "fusion_bench": "of the checkpoints that fusion_bench publishes",
    "TALL and TSV": "of the checkpoints of TALL masks and TSV, whose DTD was contaminated where older files were used",
    "L-LoRA": "of the models of partial linearization, which adapted the query projection alone",
}
NUMBER = ["mode", "space", "method", "paper", "setting", "chosen_on", "average"]  # what one row of the page is of


def published_tables(published: pd.DataFrame, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Per family: its title, a row a published model with averages over the tasks both have, and all tasks singly.

    published: the rows of one backbone and suite of the table of that name; methods: in the order to be shown.
    """
    rows = published.assign(average=published["task"] == "", rank=published["method"].map(list(methods).index))
    rows = by_place(rows.sort_values("rank", kind="stable"), "mode")
    found = []
    for name, family in rows.groupby("family", sort=False):
        models = [part for _, part in family.groupby(NUMBER, sort=False)]
        single = [part for part in models if not part["average"].any()]
        found.append(
            {
                "family": name,
                "about": ABOUT_FAMILY.get(str(name), ""),
                "rows": [_row(part) for part in models],
                "tasks": {"head": ["Task", "Ours", "Published", "Difference"], "body": _by_task(single)},
            }
        )
    return found


def _row(part: pd.DataFrame) -> dict[str, Any]:
    one = part.iloc[0]
    sources = sorted(set(part["source"]))
    return {
        **{"model": label(one["mode"]), "method": in_space(one["method"], one["space"]), "setting": one["setting"]},
        **{"ours": percent(part["value"].mean()), "published": percent(part["published"].mean())},
        **{"difference": points(part["difference"].mean()), "tasks": int(part["n_tasks"].sum())},
        **{"chosen": "on test data" if one["chosen_on"] == "test" else "–", "paper": one["paper"]},
        **{"source": sources[0] if len(sources) == 1 else f"{sources[0]} and {len(sources) - 1} more"},
    }


def _by_task(models: list[pd.DataFrame]) -> list[list[str]]:
    """The tasks of each model below a line with its name."""
    body = []
    for part in models:
        one = part.iloc[0]
        said = [label(one["mode"]), in_space(one["method"], one["space"]), one["setting"], one["paper"]]
        body.append([", ".join(word for word in said if word)])
        for row in part.to_dict("records"):
            numbers = (percent(row["value"]), percent(row["published"]), points(row["difference"]))
            body.append([label(row["task"]), *numbers])
    return body
