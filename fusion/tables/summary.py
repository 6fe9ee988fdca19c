"""What a run's tables say in plain sentences, and whether anything in them looks wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fusion.intervals import difference_z
from fusion.protocol import PROTOCOL, TOLERANCE
from fusion.tables.labels import in_space, label, percent, points
from fusion.tables.score_rows import by_place, clean, measured, of_suite

Row = dict[Any, Any]
MODEL = ["mode", "space", "method"]
IMPLAUSIBLE_Z = 3.0  # test above val by this many standard errors: by chance once in 700 models


@dataclass(frozen=True)
class Finding:
    """One sentence about a run; a warning if it reports what should not be."""

    text: str
    warning: bool = False


def findings(tables: dict[str, pd.DataFrame]) -> list[Finding]:
    """Every sentence about every backbone and suite, computed from the tables alone, warnings last.

    On corrupted pictures nothing is a warning: what should not be elsewhere, such as a merged model above the
    individual ones, is there what robustness is about.
    """
    found = []
    corrupted = set(tables["scores"].loc[tables["scores"]["corruption"] != "", "suite"])
    suites = list(tables["leaderboard"].groupby(["backbone", "suite"]))
    for (backbone, suite), board in suites:
        per_task = of_suite(tables["per_task"], backbone, suite)
        said = []
        for mode, rows in board.groupby("mode", sort=False):
            said += _individuals(label(mode), rows, per_task[per_task["mode"] == mode])
            said += _multitask(label(mode), _references(rows))
            said += _merged(label(mode), rows)
        said += [*_entropies(board, of_suite(tables["diagnostics"], backbone, suite)), *_lora(board)]
        prefix = f"{backbone}, {suite}: " if len(suites) > 1 else ""
        found += [Finding(prefix + one.text, one.warning and suite not in corrupted) for one in said]
    found += [*_test_above_val(tables["scores"]), *_zero_shot(tables["published"])]
    return sorted(found, key=lambda finding: finding.warning)


def _individuals(mode: str, board: pd.DataFrame, per_task: pd.DataFrame) -> Iterator[Finding]:
    reference = _references(board)
    if not {"individual", "pretrained"} <= set(reference):
        return
    own, pretrained = reference["individual"], reference["pretrained"]
    models = per_task[per_task["method"] == "individual"].to_dict("records")
    start = per_task[per_task["method"] == "pretrained"].to_dict("records")[0]
    gains = {m["trained_on"]: m[m["trained_on"]] - start[m["trained_on"]] for m in models}
    better = sum(gain > 0 for gain in gains.values())
    yield Finding(
        f"{mode}: individual models reach {percent(own)} % on their own tasks, the pre-trained model "
        f"{percent(pretrained)} % ({points(own - pretrained)} points); "
        f"fine-tuning helps on {better} of {len(gains)} tasks."
    )
    for task, gain in gains.items():
        if gain <= 0:
            text = f"does not beat the pre-trained model on its own task ({points(gain)} points)"
            yield Finding(f"{mode}: the individual model of {label(task)} {text}.", warning=True)


def _multitask(mode: str, reference: dict[str, float]) -> Iterator[Finding]:
    if not {"multitask", "individual", "pretrained"} <= set(reference):
        return
    found = reference["multitask"]
    gap = points(found - reference["individual"])
    yield Finding(
        f"{mode}: one model fine-tuned on all tasks at once reaches {percent(found)} %, "
        f"{gap} points against the individual models."
    )
    if found <= reference["pretrained"]:
        text = f"does not beat the pre-trained model ({percent(reference['pretrained'])} %)"
        yield Finding(f"{mode}: the multi-task model ({percent(found)} %) {text}.", warning=True)


def _merged(mode: str, board: pd.DataFrame) -> Iterator[Finding]:
    reference, fused = _references(board), _fused(board)
    if not fused or not {"individual", "pretrained"} <= set(reference):
        return
    for kind in dict.fromkeys(row["method_class"] for row in fused):
        best = max((row for row in fused if row["method_class"] == kind), key=lambda row: row["accuracy"])
        yield Finding(f"{mode}: the best {kind} method on test is {_compared(best, reference)}.")
    below = sum(row["accuracy"] <= reference["pretrained"] for row in fused)
    if below:
        text = f"{below} of {len(fused)} fused models do not beat the pre-trained model on average"
        yield Finding(f"{mode}: {text}.")
    for row in fused:
        if row["accuracy"] > reference["individual"]:
            text = f"{_name(row)} ({percent(row['accuracy'])} %) is above the individual models"
            yield Finding(f"{mode}: {text} ({percent(reference['individual'])} %).", warning=True)


def _compared(row: Row, reference: dict[str, float]) -> str:
    gaps = {name: points(row["accuracy"] - reference[name]) for name in ("pretrained", "individual")}
    return (
        f"{_name(row)} with {percent(row['accuracy'])} % "
        f"(95 % CI {percent(row['ci_low'])} to {percent(row['ci_high'])}): {gaps['pretrained']} points "
        f"against the pre-trained model, {gaps['individual']} against the individual models"
    )


def _entropies(board: pd.DataFrame, diagnostics: pd.DataFrame) -> Iterator[Finding]:
    """What each unlabelled method says of the entropy that it minimizes: at its start, and of its merged model."""
    names = ["entropy_before", "entropy_after"]
    rows = diagnostics[diagnostics["name"].isin(names)]
    means = rows.groupby([*MODEL, "name"])["value"].mean().unstack("name").reindex(columns=names).reset_index()
    unlabelled = board.loc[board["method_class"] == "unlabelled", MODEL]
    for (mode, space), part in by_place(unlabelled.merge(means, on=MODEL)).groupby(["mode", "space"], sort=False):
        where = in_space(mode, f"{space} space" if space else "")
        said = [(f"{label(row['method'])} {_change(row)}", row) for row in part.to_dict("records")]
        listed = ", ".join(text for text, _ in said)
        yield Finding(f"{where}: entropy on validation inputs before and after adaptation: {listed} (nats).")
        for text, row in said:
            if not row["entropy_after"] < row["entropy_before"]:  # nor is a missing one
                yield Finding(f"{where}: adaptation did not lower the entropy: {text} (nats).", warning=True)


def _change(row: Row) -> str:
    return f"{row['entropy_before']:.3f} → {row['entropy_after']:.3f}"


def _lora(board: pd.DataFrame) -> Iterator[Finding]:
    for space, part in by_place(board, "space").groupby("space", sort=False):
        rows = {mode: _fused(part[part["mode"] == mode]) for mode in ("l_lora", "lora")}
        modes = {mode: {row["method"]: row for row in found} for mode, found in rows.items()}
        shared = [method for method in modes["l_lora"] if method in modes["lora"]]
        if not shared:
            continue
        said = [f"on average over {len(shared)} methods {_versus(modes, shared)}"]
        if "task_arithmetic" in shared:
            said.append(f"under task arithmetic {_versus(modes, ['task_arithmetic'])}")
        yield Finding(f"L-LoRA against LoRA, merged in {space} space: {'; '.join(said)}.")


def _versus(modes: dict[str, dict[str, Row]], methods: list[str]) -> str:
    def mean(mode: str, column: str) -> float:
        return sum(modes[mode][method][column] for method in methods) / len(methods)

    linear, plain = mean("l_lora", "accuracy"), mean("lora", "accuracy")
    relative = f"{percent(mean('l_lora', 'normalized'))} % against {percent(mean('lora', 'normalized'))} %"
    gain = f"{points(linear - plain)} points, normalized {relative}"
    return f"{percent(linear)} % against {percent(plain)} % ({gain})"


def _test_above_val(scores: pd.DataFrame) -> Iterator[Finding]:
    """Individual models that do better on test than on val: a sign of test data among their training data."""
    keys = ["backbone", "mode", "trained_on", "seed"]
    own = clean(scores[(scores["method"] == "individual") & (scores["trained_on"] == scores["task"])])
    test, val = (measured(own, "accuracy", split).drop_duplicates(keys) for split in ("test", "val"))
    both = test.merge(val, on=keys, suffixes=("", "_val")).to_dict("records")
    if not both:
        yield Finding("Individual models were not scored on val and clean test data: test was not checked against it.")
        return
    z = [difference_z(row["value"], row["n"], row["value_val"], row["n_val"]) for row in both]
    yield Finding(
        f"On its own task, no individual model's test accuracy exceeds its val accuracy by more than "
        f"{max(*z, 0.0):.1f} standard errors ({len(both)} models checked)."
    )
    for row, excess in zip(both, z, strict=True):
        if excess > IMPLAUSIBLE_Z:
            text = f"{percent(row['value'])} % on test, {percent(row['value_val'])} % on val (z = {excess:.1f})"
            where = f"{label(row['mode'])}, {label(row['task'])}, seed {row['seed']}"
            yield Finding(f"{where}: {text}; was it trained on test data?", warning=True)


def _zero_shot(published: pd.DataFrame) -> Iterator[Finding]:
    """The pre-trained model against published numbers of the same protocol: the wrong class order or normalization
    shows there first."""
    rows = published[(published["method"] == "pretrained") & (published["task"] != "")]
    rows = rows[rows["protocol"] == PROTOCOL]
    rows = rows.drop_duplicates(["backbone", "task", "published"])
    if rows.empty:
        return
    largest = rows["difference"].abs().max()
    yield Finding(f"Zero-shot accuracies are within {percent(largest)} points of {len(rows)} published ones.")
    for row in rows[rows["difference"].abs() > TOLERANCE].to_dict("records"):
        text = f"{percent(row['value'])} % zero-shot on {label(row['task'])}, published {percent(row['published'])} %"
        where = "check its class names, their order, the prompts and the normalization"
        yield Finding(f"{row['backbone']}: {text} ({row['source']}); {where}.", warning=True)


def _references(board: pd.DataFrame) -> dict[str, float]:
    rows = board[(board["method_class"] == "reference") & board["accuracy"].notna()]
    return dict(zip(rows["method"], rows["accuracy"], strict=True))


def _fused(board: pd.DataFrame) -> list[Row]:
    return board[(board["method_class"] != "reference") & board["accuracy"].notna()].to_dict("records")


def _name(row: Row) -> str:
    return in_space(row["method"], f"{row['space']} space" if row["space"] else "")
