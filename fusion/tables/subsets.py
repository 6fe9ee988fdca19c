"""How fusion fares with the number of tasks: the subsets of a suite, and the whole of it."""

from collections.abc import Mapping

import pandas as pd

from fusion.tables.score_rows import GROUP, measured, on_own_tasks, ordered, suite_tasks

COLUMNS = [*GROUP, "subset", "n_tasks", "accuracy", "normalized", "seeds"]


def make_subsets(placed: pd.DataFrame, subsets: Mapping[str, str]) -> pd.DataFrame:
    """One row per model and subset of a suite, the whole suite being one of them: COLUMNS; empty without subsets.

    accuracy and normalized are those of the leaderboard, without intervals: averages over the tasks of the subset
    of test accuracy, and of test accuracy divided by the individual model's of the same mode and seed.
    """
    shown = {**subsets, **{whole: whole for whole in subsets.values()}}
    places = placed[placed["suite"].isin(shown)].groupby(["backbone", "suite"])
    frames = [_averages(rows).assign(subset=str(name), suite=shown[str(name)]) for (_, name), rows in places]
    return ordered(pd.concat(frames, ignore_index=True)[COLUMNS]) if frames else pd.DataFrame(columns=COLUMNS)


def _averages(scores: pd.DataFrame) -> pd.DataFrame:
    tasks = suite_tasks(scores)
    own = on_own_tasks(measured(scores, "accuracy"), tasks)
    ceilings = own.loc[own["method"] == "individual", ["mode", "seed", "task", "value"]]
    keys = ["mode", "task"]
    # the pre-trained model has no seed: it is compared with the individual models of all seeds
    by_seed = own[own["method"] != "pretrained"].merge(ceilings, on=[*keys, "seed"], how="left", suffixes=("", "_own"))
    unseeded = own[own["method"] == "pretrained"].merge(
        ceilings.rename(columns={"seed": "own_seed"}), on=keys, how="left", suffixes=("", "_own")
    )
    both = pd.concat([by_seed, unseeded], ignore_index=True)
    both["normalized"] = both["value"] / both["value_own"].where(both["value_own"] > 0)
    found = both.groupby(GROUP, as_index=False).agg(
        accuracy=("value", "mean"), normalized=("normalized", "mean"), seeds=("seed", "nunique")
    )
    return found.assign(n_tasks=len(tasks))
