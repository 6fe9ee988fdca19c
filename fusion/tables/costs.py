"""The table of what each step cost, and what it says of jobs that ask a scheduler for too much."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fusion.allocation import ALLOCATION
from fusion.tables.score_rows import GROUP

USED = 0.25  # of what was asked for; a step that uses less blocks what others wait for
RULES = {("finetune", "individual"): "finetune_task", ("finetune", "multitask"): "finetune_multitask"}


def make_costs(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per fine-tuning (step "finetune"), fusion ("fuse") and evaluation ("evaluate"), averaged over seeds.

    Columns: step, GROUP, task (that an individual model was trained on, else ''), seconds (of a fusion, merging the
    chosen candidate alone), select_seconds (of a fusion: the whole search over the grid, scoring included),
    seconds_std (of seconds), queue_seconds (before the job began), seeds, peak_bytes (on a GPU: its memory),
    extra_parameters (stored beyond those of one model), and the most of ALLOCATION: what a scheduler was asked for and
    what was used of it. A model that could not be made has no row.
    """
    made = scores[scores["reason"] == ""].drop(columns="task").rename(columns={"trained_on": "task"})
    finetuned = made["method"].isin(["individual", "multitask"])
    steps = {"finetune": made[finetuned], "fuse": made[~finetuned & (made["method"] != "pretrained")], "evaluate": made}
    frames = []
    for step, rows in steps.items():
        rows = rows.assign(step=step, seconds=rows[f"{step}_seconds"])
        if step == "evaluate":
            own = {name: rows[f"evaluate_{name}"] for name in ("queue_seconds", "peak_bytes", *ALLOCATION)}
            rows = rows.assign(select_seconds=np.nan, **own)
        frames.append(rows)
    spent = pd.concat(frames, ignore_index=True)
    # A cost that was not measured is written as a negative number.
    spent["peak_bytes"] = spent["peak_bytes"].where(spent["peak_bytes"] >= 0)
    keys = ["step", *GROUP, "task"]
    figures = ["seconds", "select_seconds", "queue_seconds", "peak_bytes", "extra_parameters", *ALLOCATION]
    by_seed = spent.groupby([*keys, "seed"], as_index=False)[figures].first()
    return by_seed.groupby(keys, as_index=False).agg(
        seconds=("seconds", "mean"),
        select_seconds=("select_seconds", "mean"),
        seconds_std=("seconds", "std"),
        queue_seconds=("queue_seconds", "mean"),
        seeds=("seed", "nunique"),
        peak_bytes=("peak_bytes", "max"),
        extra_parameters=("extra_parameters", "max"),
        **{name: (name, "max") for name in ALLOCATION},
    )


def too_much_asked(costs: pd.DataFrame) -> str:
    """A sentence on the rules whose jobs all used less than a quarter of what they asked for; empty without any."""
    rules = []
    for rule, rows in costs.groupby([_rule(row) for row in costs.to_dict("records")], sort=False):
        for unit, what in (("mb", "MB"), ("minutes", "minutes")):
            used, asked = rows[f"used_{unit}"].max(), rows[f"asked_{unit}"].max()
            if used < USED * asked:
                rules.append(f"{rule} {used:.0f} of {asked:.0f} {what}")
    most = ", ".join(rules)
    return f"used under a quarter of what was asked for (set-resources in profiles/slurm): {most}" if rules else ""


def _rule(row: Mapping[Any, Any]) -> str:
    """The rule whose jobs a row is about."""
    if row["step"] != "evaluate":
        return RULES.get((row["step"], row["method"]), "fuse")
    return f"evaluate_{row['method'] if row['method_class'] == 'reference' else 'fused'}"
