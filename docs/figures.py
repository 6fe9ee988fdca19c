"""Writes what README shows of a finished demo: its figures as SVG files, and its leaderboard in Markdown."""

from pathlib import Path

import pandas as pd

from fusion.artifacts import new_folder
from fusion.report.figures import standalone
from fusion.report.sections import sections
from fusion.stages.tables import TABLES, markdown
from fusion.tables.labels import label, percent

ROOT = Path(__file__).resolve().parents[1]


def write_demo(tables: Path, folder: Path) -> None:
    """Writes heat_map_{mode}.svg, selection.svg (where there is a grid) and leaderboard.md into the folder.

    The tables are of a run with one backbone and one suite; ValueError for any other.
    """
    read = {name: pd.read_parquet(tables / f"{name}.parquet") for name in TABLES}
    parts = sections(read)
    if len(parts) != 1:
        got = f"got {len(parts)} pairs of backbone and suite"
        raise ValueError(f"{tables}: {got}, expected the one of the demo (config/config.yaml)")
    figures = {f"heat_map_{one['name']}": one["svg"] for one in parts[0]["heat_maps"]}
    if parts[0]["selection"]:
        figures["selection"] = parts[0]["selection"]
    with new_folder(folder) as new:
        for name, svg in figures.items():
            (new / f"{name}.svg").write_text(standalone(svg), encoding="utf-8")
        (new / "leaderboard.md").write_text(markdown(compact(read["leaderboard"])), encoding="utf-8")


def compact(leaderboard: pd.DataFrame) -> pd.DataFrame:
    """The leaderboard with one column an idea, as text; accuracies and normalized ones in per cent."""
    half = (leaderboard["ci_high"] - leaderboard["ci_low"]) / 2
    accuracy = leaderboard["accuracy"].map(percent) + " ± " + half.map(percent)
    failed = leaderboard["accuracy"].isna()
    return pd.DataFrame(
        {
            "mode": leaderboard["mode"].map(label),
            "space": leaderboard["space"],
            "class": leaderboard["method_class"],
            "method": leaderboard["method"].map(label),
            "accuracy, %": accuracy.mask(failed, "could not run: " + leaderboard["reason"]),
            "normalized, %": leaderboard["normalized"].map(percent),
        }
    )


if __name__ == "__main__":
    write_demo(ROOT / "results/demo/tables", ROOT / "docs/demo")
