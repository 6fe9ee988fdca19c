"""What the page shows, in its order and words: plain values for the template, and figures as SVG."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fusion.report.boards import ABOUT_CLASS, boards
from fusion.report.figures import heat_map, selection_curves, similarity_maps
from fusion.report.published import published_tables
from fusion.report.size_curves import size_curves
from fusion.tables.costs import too_much_asked
from fusion.tables.labels import duration, in_space, label, millions, percent, size
from fusion.tables.score_rows import CLASSES, GROUP, by_place, of_suite

Tables = dict[str, pd.DataFrame]
PLACE = ["mode", "space"]
# The leaderboard keeps its ranking within a mode, whatever the space.
SHOWN = {
    "leaderboard": ["mode"],
    **dict.fromkeys(("per_task", "selection", "costs", "similarity", "diagnostics", "subsets", "published"), PLACE),
}
NOT_TASKS = (*GROUP, "trained_on", "seeds", "average", "seed_std", "unseen_average")


def sections(tables: Tables) -> list[dict[str, Any]]:
    """One dictionary per backbone and suite with everything its part of the page shows."""
    found = []
    for (backbone, suite), _ in tables["leaderboard"].groupby(["backbone", "suite"], sort=False):
        part = {name: by_place(of_suite(tables[name], backbone, suite), *by) for name, by in SHOWN.items()}
        methods = method_order(part["leaderboard"])
        measured = part["per_task"].dropna(axis=1, how="all")
        unseen = of_suite(tables["scores"], backbone, suite).query("not seen")["task"].unique()
        tasks = sorted((str(name) for name in measured if name not in NOT_TASKS), key=lambda task: task in unseen)
        found.append(
            {
                "backbone": backbone,
                "suite": suite,
                "tasks": tasks,
                "boards": boards(part["leaderboard"]),
                "heat_maps": _heat_maps(part["per_task"], methods, tasks),
                "selection": _selection(part["selection"], methods),
                "similarity": similarity_maps(part["similarity"]) if len(part["similarity"]) else "",
                "fine_tuning": _fine_tuning(part["costs"], tasks),
                "fusion": _fusion(part["costs"], methods),
                "too_much_asked": too_much_asked(part["costs"]),
                "sizes": size_curves(part["subsets"], methods) if len(part["subsets"]) else "",
                "masks": _masks(part["diagnostics"]),
                "published": published_tables(part["published"], methods),
            }
        )
    return found


def method_order(board: pd.DataFrame) -> list[str]:
    """The methods in the order that all figures keep: by class, then by mean accuracy over the modes."""
    mean = board.groupby(["method_class", "method"], as_index=False)["accuracy"].mean()
    mean = mean.assign(of_class=mean["method_class"].map(CLASSES.index), fall=-mean["accuracy"].fillna(0))
    return mean.sort_values(["of_class", "fall", "method"])["method"].tolist()


def _heat_maps(per_task: pd.DataFrame, methods: Sequence[str], tasks: list[str]) -> list[dict[str, Any]]:
    cells = per_task[tasks].to_numpy(dtype=float)
    low, high = float(np.nanmin(cells)), float(np.nanmax(cells))
    columns, maps = [*tasks, "average", *({"unseen_average"} & set(per_task))], []
    for mode, rows in per_task.groupby("mode", sort=False):
        groups = [("Reference", _reference_cells(rows, tasks, columns))]
        fused = rows[(rows["method_class"] != "reference") & rows["average"].notna()]
        for (space, kind), part in fused.groupby(["space", "method_class"], sort=False):
            found = {row["method"]: [row[column] for column in columns] for row in part.to_dict("records")}
            members = [(label(method), found[method]) for method in methods if method in found]
            groups.append((in_space(kind, f"{space} space" if space else ""), members))
        shown = [group for group in groups if group[1]]
        maps.append({"name": mode, "mode": label(mode), "svg": heat_map(shown, [*map(label, columns)], low, high)})
    return maps


def _reference_cells(rows: pd.DataFrame, tasks: list[str], columns: list[str]) -> list[tuple[str, list[float]]]:
    """The references of one mode, the individual models as one row that has each on its own task."""
    values = {row["method"]: [row[column] for column in columns] for row in rows.to_dict("records")}
    cells = [(label(method), values[method]) for method in ("pretrained", "multitask") if method in values]
    individual = rows[rows["method"] == "individual"].set_index("trained_on")
    if len(individual):
        own = {task: individual[task].to_dict().get(task, np.nan) for task in tasks}
        own["average"] = float(np.nanmean(list(own.values())))
        cells.append(("Individual, own task", [own.get(column, np.nan) for column in columns]))
    return cells


def _selection(selection: pd.DataFrame, methods: Sequence[str]) -> str:
    rows = selection[(selection["metric"] == "accuracy") & selection["scaling"].notna()]
    # A method without a grid has one candidate, which makes no curve.
    rows = rows[rows.groupby([*PLACE, "method"])["scaling"].transform("nunique") > 1]
    if rows.empty:
        return ""
    others = [_others(*pair) for pair in zip(rows["hyperparameters"], rows["scaling"], strict=True)]
    return selection_curves(rows.assign(others=others), methods)


def _others(hyperparameters: str, scaling: float) -> str:
    """The hyper-parameters but for the scaling, which of several algorithms is named after its own."""
    found = json.loads(hyperparameters)
    return json.dumps({n: v for n, v in found.items() if n.split(".")[-1] != "scaling" or v != scaling}, sort_keys=True)


def _fine_tuning(costs: pd.DataFrame, tasks: list[str]) -> dict[str, Any]:
    rows = costs[costs["step"] == "finetune"]
    multitask = "multitask" in set(rows["method"])
    body = []
    for mode, part in rows.groupby("mode", sort=False):
        seconds = part.set_index("task")["seconds"].to_dict()
        together = seconds.pop("", np.nan)  # the multi-task model is of no one task
        own = [*(seconds.get(task, np.nan) for task in tasks), sum(seconds.values()), *[together] * multitask]
        body.append([label(mode), *map(duration, own)])
    return {"head": ["Mode", *map(label, tasks), "All tasks", *["Multi-task"] * multitask], "body": body}


def _fusion(costs: pd.DataFrame, methods: Sequence[str]) -> dict[str, Any]:
    """The methods in a part a class, each part below its title."""
    rows = costs[costs["step"] == "fuse"]
    places = list(rows[PLACE].drop_duplicates().itertuples(index=False, name=None))
    body = []
    for kind in (name for name in CLASSES if name in set(rows["method_class"])):
        body.append([ABOUT_CLASS[kind]])
        for method in (name for name in methods if name in set(rows.loc[rows["method_class"] == kind, "method"])):
            part = rows[rows["method"] == method]
            seconds = part.set_index(PLACE)["seconds"].to_dict()
            most = (size(part["peak_bytes"].max(), "B"), millions(part["extra_parameters"].max()))
            body.append([label(method), *(duration(seconds.get(place, np.nan)) for place in places), *most])
    head = ["Method", *(in_space(mode, space) for mode, space in places), "Peak memory", "Extra parameters"]
    return {"head": head, "body": body}


def _masks(diagnostics: pd.DataFrame) -> dict[str, Any] | None:
    """Per learned mask: its density, and what it leaves of each individual model on its own task."""
    kept = diagnostics[diagnostics["name"].isin(["density", "masked_individual_accuracy"])]
    if kept.empty:
        return None
    column = kept["key"].where(kept["name"] != "density", "density")
    wide = kept.assign(column=column).pivot_table(
        index=["mode", "space", "method"], columns="column", values="value", sort=False
    )
    tasks = [name for name in wide if name != "density"]
    head = ["Method", "Models", "Density", *(label(str(task)) for task in tasks)]
    body = [
        [label(row["method"]), in_space(row["mode"], row["space"]), f"{row['density']:.2f}"]
        + [percent(row[task]) for task in tasks]
        for row in wide.reset_index().to_dict("records")
    ]
    return {"head": head, "body": body}
