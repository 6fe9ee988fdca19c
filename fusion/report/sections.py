"""What the page shows, in its order and words: plain values for the template, and figures as SVG."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fusion.report.figures import heat_map, selection_curves, similarity_maps
from fusion.tables.labels import duration, in_space, label, percent, size
from fusion.tables.score_rows import CLASSES, GROUP, by_place, of_suite

Tables = dict[str, pd.DataFrame]
PLACE = ["mode", "space"]
# The leaderboard keeps its ranking within a mode, whatever the space.
SHOWN = {
    "leaderboard": ["mode"],
    **dict.fromkeys(("per_task", "selection", "costs", "similarity", "diagnostics"), PLACE),
}
NOT_TASKS = (*GROUP, "trained_on", "seeds", "average", "seed_std")
ABOUT_CLASS = {
    "reference": "Reference models, not fused",
    "data-free": "Data-free: from the parameters alone",
    "unlabelled": "Adapted on unlabelled inputs",
    "labelled": "Uses labels or their statistics",
    "multi-model": "Keeps more than one model's parameters, or routes",
}


def sections(tables: Tables) -> list[dict[str, Any]]:
    """One dictionary per backbone and suite with everything its part of the page shows."""
    found = []
    for (backbone, suite), _ in tables["leaderboard"].groupby(["backbone", "suite"], sort=False):
        part = {name: by_place(of_suite(tables[name], backbone, suite), *by) for name, by in SHOWN.items()}
        methods = method_order(part["leaderboard"])
        measured = part["per_task"].dropna(axis=1, how="all")
        tasks = [str(name) for name in measured if name not in NOT_TASKS]
        found.append(
            {
                "backbone": backbone,
                "suite": suite,
                "tasks": tasks,
                "boards": _boards(part["leaderboard"]),
                "heat_maps": _heat_maps(part["per_task"], methods, tasks),
                "selection": _selection(part["selection"], methods),
                "similarity": similarity_maps(part["similarity"]) if len(part["similarity"]) else "",
                "fine_tuning": _fine_tuning(part["costs"], tasks),
                "fusion": _fusion(part["costs"], methods),
                "masks": _masks(part["diagnostics"]),
            }
        )
    return found


def method_order(board: pd.DataFrame) -> list[str]:
    """The methods in the order that all figures keep: by class, then by mean accuracy over the modes."""
    mean = board.groupby(["method_class", "method"], as_index=False)["accuracy"].mean()
    mean = mean.assign(of_class=mean["method_class"].map(CLASSES.index), fall=-mean["accuracy"].fillna(0))
    return mean.sort_values(["of_class", "fall", "method"])["method"].tolist()


def described(hyperparameters: str) -> list[str]:
    """Each hyper-parameter in words, like 'density 0.2', or 'scaling 0.3 / 0.4' where seeds differ."""
    values = json.loads(hyperparameters or "{}")
    by_seed = list(values.values()) if any(name.startswith("seed ") for name in values) else [values]
    names = dict.fromkeys(name for chosen in by_seed for name in chosen)
    shown = {name: dict.fromkeys(f"{chosen.get(name, '–')}" for chosen in by_seed) for name in names}
    return [f"{name.replace('_', ' ')} {' / '.join(values)}" for name, values in shown.items()]


def _boards(leaderboard: pd.DataFrame) -> list[dict[str, Any]]:
    """Per mode: its method classes with their rows, and the axis that the intervals are drawn on."""
    boards = []
    for mode, rows in leaderboard.groupby("mode", sort=False):
        low = np.floor(np.nanmin(rows[["ci_low"]]) * 20) / 20
        high = np.ceil(np.nanmax(rows[["ci_high"]]) * 20) / 20
        reference = rows[rows["method_class"] == "reference"]
        marks = [_at(value, low, high) for value in reference["accuracy"].dropna()]
        groups = [
            {
                "title": ABOUT_CLASS[str(kind)],
                "rows": [_board_row(row, low, high) for row in part.to_dict("records")],
            }
            for kind, part in rows.groupby("method_class", sort=False)
        ]
        boards.append({"mode": label(mode), "groups": groups, "low": low, "high": high, "marks": marks})
    return boards


def _board_row(row: dict[Any, Any], low: float, high: float) -> dict[str, Any]:
    half = (row["ci_high"] - row["ci_low"]) / 2
    normalized_half = (row["normalized_ci_high"] - row["normalized_ci_low"]) / 2
    return {
        **{"method": label(row["method"]), "space": row["space"], "reason": row["reason"]},
        **{"failed": pd.isna(row["accuracy"]), "accuracy": percent(row["accuracy"]), "half": percent(half)},
        **{"normalized": percent(row["normalized"]), "normalized_half": percent(normalized_half)},
        **{"entropy": "–" if pd.isna(row["entropy"]) else f"{row['entropy']:.3f}", "seeds": row["seeds"]},
        **{"seed_std": "" if pd.isna(row["seed_std"]) else percent(row["seed_std"])},
        **{"settings": described(row["hyperparameters"]), "tuned_on": _tuned_on(row)},
        **{"time": "–" if row["method_class"] == "reference" else duration(row["fuse_seconds"])},
        **{"ci_low": _at(row["ci_low"], low, high), "at": _at(row["accuracy"], low, high)},
        **{"width": round(_at(row["ci_high"], low, high) - _at(row["ci_low"], low, high), 1)},
    }


def _tuned_on(row: dict[Any, Any]) -> str:
    labels = [f"{row['selected_on']} labels"] if row["selected_on"] else []
    inputs = [f"{row['adapted_on']} inputs"] if row["adapted_on"] else []
    return ", ".join([*labels, *inputs])


def _at(value: float, low: float, high: float) -> float:
    """Where a value lies on an axis of 100 units."""
    return 0.0 if pd.isna(value) or high <= low else round(100 * (value - low) / (high - low), 1)


def _heat_maps(per_task: pd.DataFrame, methods: Sequence[str], tasks: list[str]) -> list[dict[str, Any]]:
    cells = per_task[tasks].to_numpy(dtype=float)
    low, high = float(np.nanmin(cells)), float(np.nanmax(cells))
    columns, maps = [*tasks, "average"], []
    for mode, rows in per_task.groupby("mode", sort=False):
        individual = rows[rows["method"] == "individual"].set_index("trained_on")
        own = [individual[task].to_dict().get(task, np.nan) for task in tasks]
        start = rows.loc[rows["method"] == "pretrained", columns].to_numpy(dtype=float).tolist()
        groups = [("Reference", [("Pre-trained", values) for values in start])]
        if len(individual):
            groups[0][1].append(("Individual, own task", [*own, float(np.nanmean(own))]))
        for space, part in rows[rows["method_class"] != "reference"].groupby("space", sort=False):
            found = {row["method"]: [row[column] for column in columns] for row in part.to_dict("records")}
            members = [(label(method), found[method]) for method in methods if method in found]
            groups.append((f"{str(space).capitalize()} space" if space else "Fused", members))
        shown = [group for group in groups if group[1]]
        maps.append({"name": mode, "mode": label(mode), "svg": heat_map(shown, [*map(label, columns)], low, high)})
    return maps


def _selection(selection: pd.DataFrame, methods: Sequence[str]) -> str:
    rows = selection[(selection["metric"] == "accuracy") & selection["scaling"].notna()]
    # A method without a grid has one candidate, which makes no curve.
    rows = rows[rows.groupby([*PLACE, "method"])["scaling"].transform("nunique") > 1]
    if rows.empty:
        return ""
    others = [
        json.dumps({name: value for name, value in json.loads(text).items() if name != "scaling"}, sort_keys=True)
        for text in rows["hyperparameters"]
    ]
    return selection_curves(rows.assign(others=others), methods)


def _fine_tuning(costs: pd.DataFrame, tasks: list[str]) -> dict[str, Any]:
    rows = costs[costs["step"] == "finetune"]
    seconds = {mode: part.set_index("task")["seconds"] for mode, part in rows.groupby("mode", sort=False)}
    body = [
        [label(mode), *(duration(found.get(task, np.nan)) for task in tasks), duration(found.sum())]
        for mode, found in seconds.items()
    ]
    return {"head": ["Mode", *map(label, tasks), "All tasks"], "body": body}


def _fusion(costs: pd.DataFrame, methods: Sequence[str]) -> dict[str, Any]:
    rows = costs[costs["step"] == "fuse"]
    places = list(rows[PLACE].drop_duplicates().itertuples(index=False, name=None))
    body = []
    for method in methods:
        part = rows[rows["method"] == method]
        if part.empty:
            continue
        seconds = part.set_index(PLACE)["seconds"].to_dict()
        most = (size(part["peak_bytes"].max(), "B"), size(part["extra_parameters"].max()))
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
