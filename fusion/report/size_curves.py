"""The figure of how fusion fares with the number of tasks."""

from collections.abc import Sequence

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusion.report.figures import INK, PALETTE, PANELS, STYLE, panels_in, svg
from fusion.tables.labels import in_space, label

LINES = ("-", "--", ":")  # for more methods than there are colours


def size_curves(subsets: pd.DataFrame, methods: Sequence[str]) -> str:
    """An SVG of normalized accuracy against the number of tasks, a panel per mode and space, a line per method."""
    fused = subsets[(subsets["method_class"] != "reference") & subsets["normalized"].notna()]
    panels = list(fused.groupby(["mode", "space"], sort=False))
    names = [method for method in methods if method in set(fused["method"])]
    width = 3.3 * min(PANELS, len(panels))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 2.6 * -(-len(panels) // PANELS) + 0.25 * len(names) / 2), layout="constrained")
        grid = panels_in(figure, len(panels), PANELS)
        for axes, ((mode, space), rows) in zip(grid, panels, strict=True):
            axes.set_title(in_space(mode, str(space)))
            for i, method in enumerate(names):
                line = LINES[i // len(PALETTE) % len(LINES)]
                _line(axes, rows[rows["method"] == method], PALETTE[i % len(PALETTE)], line, label(method))
            axes.grid(color=INK, alpha=0.12, linewidth=0.5)
            axes.set_xlabel("number of tasks")
            axes.set_xticks(sorted(fused["n_tasks"].unique()))
        for axes in grid[::PANELS]:
            axes.set_ylabel("normalized accuracy, %")
        handles = {str(line.get_label()): line for axes in grid for line in axes.get_lines()}
        lines = [handles[label(method)] for method in names]
        figure.legend(lines, [label(m) for m in names], loc="outside upper left", ncols=2, frameon=False)
        return svg(figure, "Normalized accuracy against the number of merged tasks")


def _line(axes: Axes, rows: pd.DataFrame, colour: str, line: str, name: str) -> None:
    found = 100 * rows.groupby("n_tasks")["normalized"].agg(["mean", "std"])
    spread = found["std"].fillna(0)
    axes.plot(found.index, found["mean"], line, color=colour, linewidth=1.3, label=name, marker="o", markersize=3)
    low, high = found["mean"] - spread, found["mean"] + spread
    axes.fill_between(found.index, low, high, color=colour, alpha=0.12, linewidth=0)
