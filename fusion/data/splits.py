"""Fixed splits without leaks, which depend on the inputs and the seed, not on the machine or the row order."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import pandas as pd

from fusion.data.columns import same_text

Dropped = dict[str, dict[str, int]]  # {reason: {split as read: rows}}

PRIORITY = {"test": 0, "val": 1, "train": 2, "all": 2}  # a text in several splits stays in the first of them

# Applied in this order, each to the rows that the previous ones left.
REASONS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "unlabelled": lambda rows: rows["label"] < 0,
    "empty": lambda rows: rows["key"] == "",
    "contradictory": lambda rows: rows.groupby("key")["label"].transform("nunique") > 1,
    "in_another_split": lambda rows: rows["priority"] > rows.groupby("key")["priority"].transform("min"),
    "duplicate": lambda rows: rows.duplicated("key"),
}


def split(
    frames: Mapping[str, pd.DataFrame],
    classes: Sequence[str],
    *,
    seed: int = 0,
    max_examples: Mapping[str, int] | None = None,
    test_fraction: float = 0.2,
    val_fraction: float = 0.1,
    whole_test: bool = False,
) -> tuple[dict[str, pd.DataFrame], Dropped]:
    """Train, val and test (columns text or image, and label) in shuffled order; how many rows each reason dropped.

    Frames are `all`, or the official splits, which are kept. What is missing is taken out of the rest,
    stratified: `test_fraction` of everything, then `val_fraction` of what is left, at least one a class. The
    order is that of a hash of the input, so that any prefix, and so a cap in `max_examples`, is a fair sample. Of a
    picture it is the hash of its encoded bytes: two sources that encode the same picture differently, a hub's PNG and
    our PGM of an array, draw other validation examples and cap to others.
    whole_test: no labelled row of an official test split is dropped.
    Raises ValueError for an empty split, fewer than two classes, or a class that is not in every split before the cap.
    """
    rows, dropped = _clean(frames, whole_test)
    splits = {"train" if name == "all" else name: rows[rows["split"] == name] for name in frames}
    for name, frame in splits.items():
        _check(frame, name, dropped)
    for name, fraction in {"test": test_fraction, "val": val_fraction}.items():
        if name not in splits:
            splits[name], splits["train"] = _carve(splits["train"], fraction, f"{seed} {name}", classes)
    shuffled = {name: _shuffled(splits[name], f"{seed} order") for name in ("train", "val", "test")}
    for name, frame in shuffled.items():
        _check_classes(frame, name, classes, dropped)
    caps = max_examples or {}
    capped = {name: frame.head(caps.get(name, len(frame))) for name, frame in shuffled.items()}
    for name, frame in capped.items():
        _check(frame, name, dropped)
    return capped, dropped


def _clean(frames: Mapping[str, pd.DataFrame], whole_test: bool) -> tuple[pd.DataFrame, Dropped]:
    rows = pd.concat([frame.assign(split=name) for name, frame in frames.items()], ignore_index=True)
    column = input_column(rows)
    if column == "text":
        rows[column] = rows[column].map(str.strip)
    rows["key"] = rows[column].map(KEYS[column])
    rows["priority"] = rows["split"].map(PRIORITY)
    # which of several spellings stays must not depend on the row order
    rows = rows.sort_values(["key", column, "label"])
    dropped: Dropped = {}
    for reason, concerns in REASONS.items():
        bad = concerns(rows)
        if whole_test and reason in ("contradictory", "duplicate"):
            bad &= rows["split"] != "test"
        dropped[reason] = {name: int((rows.loc[bad, "split"] == name).sum()) for name in frames}
        rows = rows[~bad]
    return rows, dropped


def input_column(frame: pd.DataFrame) -> str:
    """The column of the inputs: text or image."""
    return next(column for column in KEYS if column in frame)


KEYS: dict[str, Callable[[Any], str]] = {"text": same_text, "image": attrgetter("key")}  # what equal inputs share


def _ranks(rows: pd.DataFrame, purpose: str) -> pd.Series:
    # a hash of its own for each purpose: the order within a split must not repeat the order it was drawn in
    return rows["key"].map(lambda key: hashlib.sha256(f"{purpose}\n{key}".encode(errors="surrogatepass")).hexdigest())


def _carve(
    rows: pd.DataFrame, fraction: float, purpose: str, classes: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The drawn rows and the rest; both have at least one of every class."""
    counts = rows["label"].value_counts()
    if rare := [f"{name!r} ({counts.get(i, 0)})" for i, name in enumerate(classes) if counts.get(i, 0) < 2]:
        raise ValueError(
            f"classes {', '.join(rare)} have too few distinct examples to be in every split; expected 3, "
            "or 2 beside an official test split: correct, merge or remove them (config/tasks.yaml)"
        )
    rows = rows.assign(rank=_ranks(rows, purpose)).sort_values(["rank", "label"])
    by_class = rows.groupby("label")
    wanted = (by_class["label"].transform("size") * fraction).round().clip(lower=1)
    drawn = by_class.cumcount() < wanted
    return rows[drawn], rows[~drawn]


def _shuffled(rows: pd.DataFrame, purpose: str) -> pd.DataFrame:
    ordered = rows.assign(rank=_ranks(rows, purpose)).sort_values(["rank", "label"])
    return ordered[[input_column(rows), "label"]].reset_index(drop=True)


def _check(rows: pd.DataFrame, name: str, dropped: Dropped) -> None:
    if (n_classes := rows["label"].nunique()) < 2:
        totals = {reason: sum(counts.values()) for reason, counts in dropped.items()}
        what = "is empty" if rows.empty else f"has {n_classes} class in {len(rows)} examples"
        raise ValueError(f"split {name!r} {what}, expected at least 2 classes; rows dropped before: {totals}")


def _check_classes(rows: pd.DataFrame, name: str, classes: Sequence[str], dropped: Dropped) -> None:
    there = set(rows["label"])
    if missing := [label for i, label in enumerate(classes) if i not in there]:
        totals = {reason: sum(counts.values()) for reason, counts in dropped.items()}
        raise ValueError(
            f"split {name!r} has no example of the classes {missing}, expected one of each; rows dropped before: "
            f"{totals}: add examples, or remove the classes (config/tasks.yaml)"
        )
