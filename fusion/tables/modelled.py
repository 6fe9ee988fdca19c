"""What jobs took, beside what they had been reckoned to take (`fusion check`)."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

COLUMNS = ["stage", "jobs", "measured_jobs", "modelled_seconds", "seconds", "modelled_mb", "mb", "rates"]
OFF = 1 / 3  # of what was measured; a model that is further off is said to be


def make_modelled(modelled: Iterable[Mapping[str, Any]], folder: Path) -> pd.DataFrame:
    """One row a stage whose jobs were measured, sorted by time.

    modelled: rows of stage (the folder of its benchmarks), jobs, seconds of all, mb of the largest, and the rates that
    they are of. folder: of Snakemake's benchmark files. Columns: COLUMNS; modelled_seconds are of as many jobs as were
    measured, mb is resident memory. No row where nothing was measured.
    """
    rows = []
    for one in modelled:
        found = [row for path in sorted((folder / one["stage"]).rglob("*.tsv")) for row in _read(path)]
        path = folder / f"{one['stage']}.tsv"
        found += _read(path) if path.is_file() else []
        if found:
            share = len(found) / max(one["jobs"], 1)
            measured = {"measured_jobs": len(found), "modelled_seconds": share * one["seconds"]}
            measured |= {"seconds": sum(s for s, _ in found), "mb": pd.Series([mb for _, mb in found]).max()}
            rows.append({**one, "modelled_mb": one["mb"], **measured})
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values("seconds", ascending=False, ignore_index=True)


def _read(path: Path) -> list[tuple[float, float]]:
    """Seconds and MB of a job; NaN of what was too short to be measured."""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t")
        return [(_number(row["s"]), _number(row["max_rss"])) for row in rows]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def far_off(modelled: pd.DataFrame) -> list[str]:
    """A sentence for every stage where the model is off by more than a third of what was measured."""
    found = []
    for row in modelled.to_dict("records"):
        for column, what in (("seconds", "s"), ("mb", "MB of memory")):
            model, measured = row[f"modelled_{column}"], row[column]
            if abs(model - measured) > OFF * measured:
                found.append(f"{row['stage']}: modelled {model:,.0f} {what}, measured {measured:,.0f}")
    return found
