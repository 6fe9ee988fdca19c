"""The figures of the report, as SVG text that takes its text colour and font from the page around it."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from fusion.tables.labels import in_space, label, percent

matplotlib.use("Agg")
INK = "#0a0b0c"  # stands for the page's text colour, which differs between light and dark
STYLE: dict[Any, Any] = {
    **{"font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left"},
    **{
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    },
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "svg.fonttype": "none"},
    **{"svg.hashsalt": "fusion", "figure.facecolor": "none", "axes.facecolor": "none"},
}
PALETTE = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#ee7733",
    "#009988",
)  # Tol, bright
PANELS = 3  # in a row, at most
WIDTH = 13.0  # inches that a row of panels may take, or one panel if it is wider

Group = tuple[str, list[tuple[str, list[float]]]]


def heat_map(groups: Sequence[Group], columns: Sequence[str], low: float, high: float) -> str:
    """An SVG of accuracies in per cent: groups (title, [(label, fractions)]), coloured from low to high."""
    rows = sum(len(rows) for _, rows in groups)
    height = 0.27 * rows + 0.34 * len(groups) + 0.5
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.3 + 0.82 * len(columns), height), layout="constrained")
        axes = figure.add_subplot()
        ticks, y = [], 0.0
        for title, members in groups:
            axes.text(-0.02, y + 0.62, title, ha="right", weight="bold", transform=axes.get_yaxis_transform())
            y += 1.0
            cells = np.array([values for _, values in members])
            _cells(axes, np.arange(len(columns) + 1), y + np.arange(len(members) + 1), cells, (low, high))
            ticks += [(y + i + 0.5, name) for i, (name, _) in enumerate(members)]
            y += len(members) + 0.25
        axes.set(xlim=(0, len(columns)), ylim=(y - 0.25, 0))
        axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
        axes.set_xticks(np.arange(len(columns)) + 0.5, [name.replace(" ", "\n", 1) for name in columns])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return svg(figure, "Accuracy of each model on each task")


def selection_curves(selection: pd.DataFrame, methods: Sequence[str]) -> str:
    """An SVG of accuracy on val against the scaling, a panel per mode and space; rings mark the chosen.

    More methods than there are colours are shown in parts, one below the other, each with its own panels.
    """
    names = [method for method in methods if method in set(selection["method"])]
    parts = [list(part) for part in np.array_split(names, -(-len(names) // len(PALETTE)))]
    shown = [selection[selection["method"].isin(part)] for part in parts]
    counts = [rows.groupby(["mode", "space"]).ngroups for rows in shown]
    width = 3.1 * min(PANELS, max(counts))
    columns = int(width / 2.2)  # of the legend
    heights = [
        2.5 * -(-count // PANELS) + 0.2 * -(-len(part) // columns) + 0.1
        for count, part in zip(counts, parts, strict=True)
    ]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        places = np.ravel(figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False))
        for place, rows, part in zip(places, shown, parts, strict=True):
            _selection_part(place, rows, part, columns)
        return svg(figure, "Validation accuracy against the scaling of each method with a grid")


def _selection_part(place: SubFigure, selection: pd.DataFrame, methods: Sequence[str], legend_columns: int) -> None:
    panels = list(selection.groupby(["mode", "space"], sort=False))
    grid = panels_in(place, len(panels), PANELS)
    for axes, ((mode, space), rows) in zip(grid, panels, strict=True):
        axes.set_title(in_space(mode, str(space)))
        for method, colour in zip(methods, PALETTE, strict=False):
            _curves(axes, rows[rows["method"] == method], colour, label(method))
        axes.grid(color=INK, alpha=0.12, linewidth=0.5)
        axes.set_xlabel("scaling λ")
    for axes in grid[::PANELS]:
        axes.set_ylabel("accuracy on val, %")
    handles = {str(line.get_label()): line for axes in grid for line in axes.get_lines()}
    names = [label(method) for method in methods]
    lines = [handles[name] for name in names]
    place.legend(lines, names, loc="outside upper left", ncols=legend_columns, frameon=False)


def similarity_maps(similarity: pd.DataFrame) -> str:
    """An SVG of the cosines between task vectors, a panel per mode and space, all on one diverging scale."""
    panels = list(similarity.groupby(["mode", "space"], sort=False))
    apart = similarity.loc[similarity["task_a"] != similarity["task_b"], "cosine"].abs()
    limit = max(0.05, float(apart.max())) if len(apart) else 1.0
    tasks = sorted(set(similarity["task_a"]) | set(similarity["task_b"]))
    side = 0.55 * len(tasks) + 1.1
    with matplotlib.rc_context(STYLE):
        columns = min(len(panels), PANELS, max(1, int(WIDTH / (side + 0.4))))
        size = ((side + 0.4) * columns, side * -(-len(panels) // columns) + 0.3)
        figure = Figure(figsize=size, layout="constrained")
        for axes, ((mode, space), rows) in zip(panels_in(figure, len(panels), columns), panels, strict=True):
            axes.set_title(in_space(mode, str(space)))
            one_way = rows.pivot(index="task_a", columns="task_b", values="cosine").reindex(index=tasks, columns=tasks)
            matrix = one_way.combine_first(one_way.T).loc[tasks, tasks].to_numpy(dtype=float, copy=True)
            np.fill_diagonal(matrix, np.nan)  # always 1, which would leave no colours for the rest
            edges = np.arange(len(tasks) + 1)
            _cells(axes, edges, edges, matrix, (-limit, limit), "RdBu_r", "{:z.2f}")
            axes.set_yticks(edges[:-1] + 0.5, [label(task) for task in tasks])
            axes.set_xticks(edges[:-1] + 0.5, [label(task) for task in tasks], rotation=40, ha="right")
            axes.set(xlim=(0, len(tasks)), ylim=(len(tasks), 0), aspect="equal")
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        return svg(figure, "Cosine similarity of task vectors")


def panels_in(place: Figure | SubFigure, count: int, columns: int) -> list[Axes]:
    """`count` axes in rows of at most `columns`, all on one vertical scale."""
    columns = min(count, columns)
    grid = np.ravel(place.subplots(-(-count // columns), columns, squeeze=False, sharey=True))
    for unused in grid[count:]:
        unused.remove()
    return list(grid[:count])


def _cells(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    values: np.ndarray,
    limits: tuple[float, float],
    colours: str = "viridis",
    form: str = "",
) -> None:
    """Coloured cells with their values written in, in black or white by the lightness behind."""
    mesh = axes.pcolormesh(x, y, values, cmap=colours, vmin=limits[0], vmax=limits[1], edgecolors="none")
    colour = np.asarray(mesh.to_rgba(np.nan_to_num(values)))  # (rows, columns, RGBA)
    lightness = colour[..., :3] @ np.array([0.299, 0.587, 0.114])
    for (row, column), value in np.ndenumerate(values):
        text = form.format(value).replace("-", "−") if form else percent(value)
        ink = INK if np.isnan(value) else ("#101010" if lightness[row, column] > 0.47 else "#ffffff")
        shown = "–" if np.isnan(value) else text
        at = (float(x[column]) + 0.5, float(y[row]) + 0.54)
        axes.text(*at, shown, ha="center", va="center", color=ink, fontsize=8.5)


def _curves(axes: Axes, rows: pd.DataFrame, colour: str, name: str) -> None:
    """One line for each setting of the hyper-parameters other than the scaling."""
    for i, (_, curve) in enumerate(rows.groupby("others", sort=False)):
        curve = curve.sort_values("scaling")
        value, spread = 100 * curve["value"], 100 * curve["seed_std"].fillna(0)
        axes.plot(curve["scaling"], value, color=colour, linewidth=1.3, label=name if i == 0 else "_")
        axes.fill_between(curve["scaling"], value - spread, value + spread, color=colour, alpha=0.15, linewidth=0)
        chosen = curve[curve["selected_seeds"] > 0]
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": colour, "linewidths": 1.4, "zorder": 3}
        axes.scatter(chosen["scaling"], 100 * chosen["value"], s=38, **ring)


def svg(figure: Figure, description: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"(\d+\.\d{2})\d+", r"\1", text)  # hundredths of a point are enough
    return text.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)


def standalone(svg: str) -> str:
    """The figure as a file of its own: dark text on white, whatever the page that shows it looks like."""
    start = svg.index(">", svg.index("<svg")) + 1
    white = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return svg[:start] + white + svg[start:].replace("currentColor", "#1d2129")
