"""Accuracy under corruptions as the page shows it."""

from typing import Any

import pandas as pd

from fusion.report.boards import ABOUT_CLASS
from fusion.tables.labels import in_space, label, percent
from fusion.tables.robustness import AVERAGE, CLEAN, corruptions


def robustness(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Per backbone, set of tasks and mode: a title, and the accuracies in per cent, a part a method class."""
    found = []
    for (backbone, suite, mode), rows in table.groupby(["backbone", "suite", "mode"], sort=False):
        rows = rows.dropna(axis=1, how="all")
        shown = [CLEAN] * (CLEAN in rows) + corruptions(rows) + [AVERAGE] * (AVERAGE in rows)
        body = []
        for kind, part in rows.groupby("method_class", sort=False):
            body.append([ABOUT_CLASS[str(kind)]])
            body += [_row(row, shown) for row in part.to_dict("records")]
        head = ["Method", *(_title(column) for column in shown)]
        found.append({"title": f"{label(mode)}: {suite}, {backbone}", "table": {"head": head, "body": body}})
    return found


def _row(row: dict[Any, Any], shown: list[str]) -> list[str]:
    return [in_space(row["method"], row["space"]), *(percent(row[column]) for column in shown)]


def _title(column: str) -> str:
    """A column as words: 'JPEG compression, severity 2'."""
    if column in (CLEAN, AVERAGE):
        return {CLEAN: "Clean", AVERAGE: "Average, corrupted"}[column]
    kind, severity = column.rsplit("-", 1)
    return f"{label(kind)}, severity {severity}"
