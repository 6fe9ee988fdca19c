"""The columns of score rows, which rows a table is about, and the order in which they are read."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from fusion.allocation import ALLOCATION

MEASUREMENT = [  # what was measured, of which model; rows are sorted by it
    *("domain", "backbone", "mode", "space", "suite", "n_tasks", "method", "method_class", "hyperparameters"),
    *("selected_on", "adapted_on", "seed", "trained_on", "task", "seen", "split", "corruption", "metric"),
]
SCORES = [
    *MEASUREMENT,
    *("value", "n", "ci_low", "ci_high", "finetune_seconds", "fuse_seconds", "select_seconds", "queue_seconds"),
    *("peak_bytes", "evaluate_seconds", "evaluate_queue_seconds", "evaluate_peak_bytes"),
    *(*ALLOCATION, *(f"evaluate_{name}" for name in ALLOCATION)),
    *("extra_parameters", "config_hash", "data_hash", "code_version", "reason"),
]
GROUP = ["backbone", "suite", "mode", "space", "method_class", "method"]
CLASSES = ("reference", "data-free", "unlabelled", "labelled", "multi-model")
MODES = ("full", "lora", "l_lora")
SPACES = ("", "weight", "adapter")


def measured(scores: pd.DataFrame, metric: str, split: str = "test") -> pd.DataFrame:
    """The rows of `metric` that were measured (a row with a reason was not), on data as the suite has it."""
    chosen = (scores["split"] == split) & (scores["metric"] == metric)
    return scores[chosen & scores["value"].notna()]


def clean(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows on uncorrupted data."""
    return scores[scores["corruption"] == ""]


def suite_tasks(scores: pd.DataFrame) -> list[str]:
    """The tasks of one suite: those that its fused models saw, else those that have an individual model."""
    rows = measured(scores, "accuracy")
    fused = rows[(rows["method_class"] != "reference") & rows["seen"]]
    return sorted(set(fused["task"]) or set(rows.loc[rows["method"] == "individual", "trained_on"]))


def on_own_tasks(scores: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """The rows on the suite's tasks; of an individual model, only those on the task it was fine-tuned on."""
    elsewhere = (scores["method"] == "individual") & (scores["trained_on"] != scores["task"])
    return scores[scores["task"].isin(tasks) & ~elsewhere]


def place_references(scores: pd.DataFrame, subsets: Mapping[str, str]) -> pd.DataFrame:
    """The scores, with references that were measured once repeated in every suite and mode they belong to.

    The pre-trained model has no mode, individual models may have no suite, and those of a suite are also those of its
    `subsets` {name: suite}. `measured_mode` and `measured_suite` keep what the rows said.
    """
    scores = scores.assign(measured_mode=scores["mode"], measured_suite=scores["suite"])
    scores = pd.concat([scores, *_of_subsets(scores, subsets)], ignore_index=True)
    homes = scores.loc[(scores["mode"] != "") & (scores["suite"] != ""), ["backbone", "suite", "mode"]]
    homes = homes.drop_duplicates()
    if homes.empty:
        return scores
    parts = []
    for blank, rows in scores.groupby([scores["suite"] == "", scores["mode"] == ""]):
        open_columns = [name for name, missing in zip(["suite", "mode"], blank, strict=True) if missing]
        if open_columns:
            on = [name for name in homes if name not in open_columns]
            rows = rows.drop(columns=open_columns).merge(homes, on=on)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)[scores.columns]


def _of_subsets(scores: pd.DataFrame, subsets: Mapping[str, str]) -> Iterator[pd.DataFrame]:
    whole = scores[scores["method"].isin(["pretrained", "individual"])]
    for name, suite in subsets.items():
        fused = scores[(scores["suite"] == name) & scores["seen"] & (scores["task"] != "")]
        tasks = [*fused["task"].unique(), ""]
        mine = whole[(whole["suite"] == suite) & whole["trained_on"].isin(tasks) & whole["task"].isin(tasks)]
        yield mine.assign(suite=name, n_tasks=len(tasks) - 1)


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """The rows by backbone, suite, mode and method class, and by falling accuracy within a class."""
    unknown = set(table["method_class"]) - set(CLASSES)
    if unknown:
        raise ValueError(f"got method_class {sorted(unknown)}, expected one of {CLASSES} (in the scores)")
    keys = pd.DataFrame(
        {
            "backbone": table["backbone"],
            "suite": table["suite"],
            "mode": [(_rank(mode, MODES), mode) for mode in table["mode"]],
            "class": table["method_class"].map(CLASSES.index),
            "accuracy": -table[next(c for c in ("accuracy", "average") if c in table)],
            "method": table["method"],
            "space": table["space"],
        }
    )
    return table.loc[keys.sort_values(keys.columns.tolist()).index].reset_index(drop=True)


def grouped_reasons(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Each reason for which models could not be made, with their rows, in the order of the table."""
    return [(str(reason), rows) for reason, rows in table[table["reason"] != ""].groupby("reason", sort=False)]


def of_suite(table: pd.DataFrame, backbone: object, suite: object) -> pd.DataFrame:
    """The rows of one backbone and suite."""
    return table[(table["backbone"] == backbone) & (table["suite"] == suite)]


def by_place(table: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """The rows by mode and space (or the one named), as readers expect them, and otherwise as they were."""
    known = {"mode": MODES, "space": SPACES}
    by = keys or tuple(known)
    ranks = {name: [_rank(value, known[name]) for value in table[name]] for name in by}
    order = pd.DataFrame({**ranks, "row": range(len(table))}).sort_values([*by, "row"])
    return table.iloc[order["row"].tolist()]


def _rank(value: str, known: Sequence[str]) -> int:
    return known.index(value) if value in known else len(known)
