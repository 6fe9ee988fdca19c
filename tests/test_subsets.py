"""Subsets of a suite, each merged by itself, and tasks that merged models are only tested on."""

import math
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
import tiny
from example_scores import add_model, first, tables_job
from test_report import report_of
from tiny_stages import TASKS, World

from fusion.job import run
from fusion.plan import Plan, read
from fusion.stages.tables import make_tables

THREE = ("a", "b", "c")
SUBSETS = {f"three:{'+'.join(pair)}": "three" for pair in combinations(THREE, 2)}


def plan(**suite: object) -> Plan:
    """The plan of the tiny configuration with this suite."""
    return read(tiny.config(Path("data"), define={"suites": {"tiny": suite}}))


def test_every_choice_of_so_many_tasks_is_a_suite_of_its_own() -> None:
    found = plan(tasks=list(TASKS), subsets=[2])
    assert found.subsets == {f"tiny:{'+'.join(pair)}": "tiny" for pair in combinations(TASKS, 2)}
    assert [found.rows.suites[name].tasks for name in found.subsets] == [list(pair) for pair in combinations(TASKS, 2)]
    assert found.tasks == list(TASKS)


@pytest.mark.parametrize(
    ("suite", "error"),
    [
        ({"tasks": list(TASKS), "subsets": [3]}, r"subsets of \[3\] of 3 tasks; expected 1 to 2"),
        ({"tasks": list(TASKS), "subsets": [0]}, r"subsets of \[0\]"),
        ({"tasks": ["food"], "unseen": ["food"]}, r"\['food'\] are listed more than once"),
        ({"tasks": ["food"], "unseen": ["fod"]}, r"unknown task 'fod'; did you mean 'food'\?"),
    ],
)
def test_impossible_subsets_and_unseen_tasks_are_errors(suite: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        plan(**suite)


def test_an_unseen_task_is_tested_on_and_not_fine_tuned() -> None:
    assert plan(tasks=["food"], unseen=["colours"]).tasks == ["food"]


def scores_of(world: World, folder: Path, method: str, evaluated: Path | None = None) -> pd.DataFrame:
    """The scores of the pre-trained or of a fused model, with the last task unseen."""
    output = {name: folder / f"{name}.parquet" for name in ("scores", "predictions")}
    settings = {"domain": "text", "method": method, "method_class": "", "corruption": "", "zero_shot": {}}
    settings |= {"unseen": TASKS[-1:], "n_tasks": len(TASKS) - 1, "evaluate": {"batch_size": 8, "examples": 10}}
    job = world.suite_job("fusion.stages.evaluate:evaluate", output, "full", **settings)
    job.input.pop("finetuned")
    job.input.update({"evaluated": str(evaluated)} if evaluated else {})
    run(job)
    return pd.read_parquet(output["scores"])


def test_scores_say_which_tasks_a_model_was_not_merged_from(world: World, tmp_path: Path) -> None:
    scores = scores_of(world, tmp_path, "pretrained")
    assert dict(zip(scores["task"], scores["seen"], strict=True)) == {task: task != TASKS[-1] for task in TASKS}
    assert set(scores["n_tasks"]) == {len(TASKS) - 1}


def test_a_method_of_one_model_a_task_is_not_scored_on_unseen_tasks(world: World, tmp_path: Path) -> None:
    job = world.fuse_job(tmp_path, "full", "emr")
    for name in ("data", "heads", "finetuned"):
        job.input[name] = job.input[name][:-1]
    job.params["settings"]["tasks"] = TASKS[:-1]
    run(job)
    scores = scores_of(world, tmp_path, "emr", tmp_path / "model")
    assert scores["task"].unique().tolist() == TASKS[:-1] and scores["value"].notna().all()


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three tasks: individual models 80, 60, 40 %, merged pairs 40 % and the merged three 20 % on each task."""
    own = dict(zip(THREE, (16, 12, 8), strict=True))
    where = {"suite": "three", "n_tasks": 3}
    add_model(tmp_path, "pretrained", {task: first(4, 20) for task in THREE}, mode="", **where)
    for task in THREE:
        right = {t: first(own[task] if t == task else 2, 20) for t in THREE}
        add_model(tmp_path, "individual", right, trained_on=task, **where)
    add_model(tmp_path, "ties", {task: first(4, 20) for task in THREE}, space="weight", **where)
    for name in SUBSETS:
        tasks = name.partition(":")[2].split("+")
        described = {"space": "weight", "suite": name, "n_tasks": 2}
        add_model(tmp_path, "ties", {task: first(8, 20) for task in tasks}, **described)
    return tmp_path


def test_a_subset_is_compared_with_the_references_of_the_whole_suite(three: Path) -> None:
    make_tables(tables_job(three, SUBSETS))
    table = pd.read_parquet(three / "tables/subsets.parquet").set_index(["subset", "method"])
    assert table.loc[("three:a+b", "ties"), ["n_tasks", "accuracy"]].tolist() == [2, 0.4]
    assert table.loc[("three:a+b", "ties"), "normalized"] == pytest.approx((0.5 + 0.4 / 0.6) / 2)
    assert table.loc[("three:b+c", "individual"), "accuracy"] == pytest.approx(0.5)
    assert table.loc[("three:b+c", "individual"), "normalized"] == 1
    assert table.loc[("three:a+c", "pretrained"), "normalized"] == pytest.approx((0.25 + 0.5) / 2)
    assert table.loc[("three", "ties"), ["n_tasks", "accuracy"]].tolist() == pytest.approx([3, 0.2])
    board = pd.read_parquet(three / "tables/leaderboard.parquet")
    assert set(board["suite"]) == {"three"}, "subsets have a table of their own"
    whole = board.set_index("method")["normalized"]
    of_three = table.xs("three", level="subset")["normalized"]
    assert of_three.to_dict() == pytest.approx(whole[of_three.index].to_dict())


def test_the_report_shows_accuracy_against_the_number_of_tasks(three: Path) -> None:
    page, _ = report_of(three, subsets=SUBSETS)
    assert page.count("<h2>Number of tasks") == 1
    assert "Normalized accuracy against the number of merged tasks" in page
    assert page.count("<h2>Leaderboard") == 1 and "three:a+b" not in page


def test_unseen_tasks_have_an_average_of_their_own(tmp_path: Path) -> None:
    add_model(tmp_path, "individual", {"a": first(9, 10)}, trained_on="a")
    add_model(tmp_path, "pretrained", {"a": first(5, 10)}, mode="")
    add_model(tmp_path, "ties", {"a": first(8, 10)}, space="weight")
    described = {"individual": {"trained_on": "a"}, "pretrained": {"mode": ""}, "ties": {"space": "weight"}}
    for method, (one, other) in {"individual": (1, 2), "pretrained": (3, 5), "ties": (2, 4)}.items():
        unseen = {"new": first(one, 10), "newer": first(other, 10)}
        add_model(tmp_path / "new", method, unseen, seen=False, **described[method])
        for kind in ("scores", "predictions"):
            (source,) = (tmp_path / "new" / kind).glob(f"*{method}*")
            source.rename(tmp_path / kind / f"unseen-{method}.parquet")
    add_model(tmp_path, "emr", {"a": first(9, 10)}, space="weight")  # which has no model for other tasks
    page, _ = report_of(tmp_path)
    table = pd.read_parquet(tmp_path / "tables/per_task.parquet").set_index("method")
    average = {"individual": 0.9, "pretrained": 0.5, "ties": 0.8, "emr": 0.9}
    assert table["average"].to_dict() == pytest.approx(average)
    unseen = {"individual": 0.15, "pretrained": 0.4, "ties": 0.3, "emr": math.nan}
    assert table["unseen_average"].to_dict() == pytest.approx(unseen, nan_ok=True)
    assert "Unseen" in page


@pytest.mark.slow
def test_subsets_are_merged_from_the_models_of_the_whole_suite(tmp_path: Path) -> None:
    pair, every = {"tasks": list(TASKS)[:2], "unseen": [TASKS[2]]}, {"tasks": list(TASKS), "subsets": [1, 2]}
    define = {"suites": {"tiny": pair, "every": every}}
    changes = {"methods": ["simple_average", "ties"], "modes": ["full"], "suites": ["tiny", "every"]}
    plan = tiny.snakemake(tmp_path, "-n", define=define, **changes)
    assert plan.returncode == 0, plan.output
    assert plan.rules["finetune_task"] == len(TASKS)
    assert plan.rules["evaluate_fused"] == 2 * (1 + 1 + 6)
    assert plan.rules["fuse"] == 2 * (1 + 6)  # the first suite's model is that of a subset of the second
    assert plan.rules["evaluate_individual"] == 2 + 3 and plan.rules["evaluate_pretrained"] == 2
