"""Snakemake itself with the fork server executor: real runs of small workflows in a temporary folder."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from socket import gethostname

import psutil
import pytest
import waiting
from snakemake.iocontainers import InputFiles
from waiting import Running, names, wait_for

from snakemake_executor_plugin_forkserver.payload import _named
from snakemake_executor_plugin_forkserver.progress import Progress, duration

SCRIPT = Path(__file__).parents[1] / "workflow" / "scripts" / "stage.py"
STAGES = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

def describe(job):
    print("» describing", job.wildcards["name"])
    print("a detail for the log")
    subprocess.run(["echo", "from a subprocess"], check=True)
    facts = {"input": job.input, "params": job.params, "threads": job.threads, "log": job.log}
    Path(job.output["facts"]).write_text(json.dumps(facts))
    if name := job.params.get("environment"):
        loaded = {module: module in sys.modules for module in ("colorsys", "snakemake")}
        Path(job.output["process"]).write_text(json.dumps({name: os.environ.get(name), **loaded}))

def fail(job):
    Path(job.output["model"]).write_text("half")
    for step in range(40):
        print("step", step)
    raise RuntimeError("the loss is nan")

def die(job):
    print("about to die", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

def meet(job):
    Path(job.output["done"]).write_text("here")
    other = Path(job.params["other"])
    while not other.exists():  # for ever, if the two do not run at the same time
        time.sleep(0.05)

def hang(job):
    try:
        subprocess.run(["sleep", "infinity"])
    finally:
        Path("cleaned-up").touch()
"""
RULES = """
rule all:
    input: expand("facts/{name}.json", name=["a", "b"]), "shell.txt", "run.txt"

rule describe:
    input: one="in/one.txt", several=["in/one.txt", "in/two.txt"]
    output: facts="facts/{name}.json", process="process/{name}.json"
    params:
        stage="tiny_stages:describe",
        settings=lambda wildcards: {"name": wildcards.name, "rates": [0.1, 1]},
        environment="OMP_NUM_THREADS"
    threads: 2
    log: "logs/describe/{name}.log"
    benchmark: "benchmarks/{name}.tsv"
    script: "SCRIPT"

rule by_shell:
    output: "shell.txt"
    shell: "echo shell > {output}"

rule by_run:
    output: "run.txt"
    run: open(output[0], "w").write("run")

rule fail:
    output: model="model.txt"
    params: stage="tiny_stages:fail"
    log: "logs/fail.log"
    script: "SCRIPT"

rule die:
    output: model="dead.txt"
    params: stage="tiny_stages:die"
    log: "logs/die.log"
    script: "SCRIPT"

rule meet:
    output: done="met/{name}.txt"
    params: stage="tiny_stages:meet", other=lambda w: {"a": "met/b.txt", "b": "met/a.txt"}[w.name]
    script: "SCRIPT"

rule hang:
    output: never="never.txt"
    params: stage="tiny_stages:hang"
    log: "logs/hang.log"
    script: "SCRIPT"

rule unnamed:
    output: "unnamed.txt"
    params: stage="tiny_stages:fail"
    script: "SCRIPT"
"""
PROFILE = """
executor: forkserver
cores: 2
quiet: [progress, rules, host, reason]
rerun-incomplete: true
forkserver-preload: "colorsys"
"""


def make_workflow(folder: Path) -> Path:
    """The folder, with a workflow, its stages, its inputs and its profile."""
    (folder / "in").mkdir(parents=True)
    (folder / "in/one.txt").write_text("1")
    (folder / "in/two.txt").write_text("2")
    (folder / "tiny_stages.py").write_text(STAGES)
    (folder / "Snakefile").write_text(RULES.replace("SCRIPT", str(SCRIPT)))
    (folder / "profiles/default").mkdir(parents=True)
    (folder / "profiles/default/config.yaml").write_text(PROFILE)
    return folder


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("snakemake")), *arguments]


def environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    modules = f"{folder}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    return {**os.environ, "PYTHONPATH": modules, "PATH": path}


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a finished run of Snakemake printed and returned."""
    return waiting.run(command(*arguments), cwd=folder, env=environment(folder))


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    return make_workflow(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of one run of everything that succeeds."""
    folder = make_workflow(tmp_path_factory.mktemp("finished") / "workflow")
    run = snakemake(folder)
    assert run.returncode == 0, run.stdout
    return folder, run.stdout


@pytest.mark.slow
def test_a_stage_receives_named_inputs_and_plain_params(finished: tuple[Path, str]) -> None:
    facts = json.loads((finished[0] / "facts/a.json").read_text())
    assert facts == {
        "input": {"one": "in/one.txt", "several": ["in/one.txt", "in/two.txt"]},
        "params": {"settings": {"name": "a", "rates": [0.1, 1]}, "environment": "OMP_NUM_THREADS"},
        "threads": 2,
        "log": "logs/describe/a.log",
    }


@pytest.mark.slow
def test_a_stage_process_has_the_preloaded_modules_but_not_snakemake_and_keeps_to_its_threads(
    finished: tuple[Path, str],
) -> None:
    process = (finished[0] / "process/a.json").read_text()
    assert process == '{"OMP_NUM_THREADS": "2", "colorsys": true, "snakemake": false}'


@pytest.mark.slow
def test_output_goes_to_the_log_and_progress_lines_also_to_the_terminal(finished: tuple[Path, str]) -> None:
    folder, output = finished
    log = (folder / "logs/describe/a.log").read_text()
    assert log == "» describing a\na detail for the log\nfrom a subprocess\n"
    assert "» describing a\n" in output and "» describing b\n" in output
    assert "a detail" not in output and "subprocess" not in output


@pytest.mark.slow
def test_each_finished_job_is_counted_and_the_time_left_estimated(finished: tuple[Path, str]) -> None:
    _, output = finished
    assert "» 1 of 5 done, about " in output and "» all 5 done in " in output
    assert "Select jobs" not in output and "Execute " not in output


@pytest.mark.slow
def test_benchmarks_are_written_with_measured_seconds(finished: tuple[Path, str]) -> None:
    header, values = (finished[0] / "benchmarks/a.tsv").read_text().splitlines()
    row = dict(zip(header.split("\t"), values.split("\t"), strict=True))
    assert float(row["s"]) > 0 and float(row["max_rss"]) > 0


@pytest.mark.slow
def test_rules_without_a_stage_run_as_under_the_local_executor(finished: tuple[Path, str]) -> None:
    assert (finished[0] / "shell.txt").read_text() == "shell\n"
    assert (finished[0] / "run.txt").read_text() == "run"


@pytest.mark.slow
def test_the_stock_local_executor_gives_the_same_outputs_and_logs(finished: tuple[Path, str], workflow: Path) -> None:
    run = snakemake(workflow, "-e", "local", "facts/a.json")
    assert run.returncode == 0, run.stdout
    assert "» describing a\n" in run.stdout and "a detail" not in run.stdout
    for name in ("facts/a.json", "logs/describe/a.log"):
        assert (workflow / name).read_bytes() == (finished[0] / name).read_bytes()
    process = json.loads((workflow / "process/a.json").read_text())
    assert process["OMP_NUM_THREADS"] == "2", "it keeps to its threads as under the fork server"


@pytest.mark.slow
def test_failed_stages_show_the_end_of_their_logs_and_lose_their_outputs(workflow: Path) -> None:
    run = snakemake(workflow, "--keep-going", "model.txt", "dead.txt", "unnamed.txt")
    assert run.returncode == 1
    assert (
        f"fail failed on {gethostname()}: RuntimeError: the loss is nan\nThe end of its log logs/fail.log:"
        in run.stdout
    )
    assert "    RuntimeError: the loss is nan\n" in run.stdout and "step 5\n" not in run.stdout
    assert "step 5\n" in (workflow / "logs/fail.log").read_text()
    assert not (workflow / "model.txt").exists()
    killed = (
        f"die failed on {gethostname()}: it was killed by signal 9 (out of memory?)\nThe end of its log logs/die.log:"
    )
    assert killed in run.stdout
    assert "    about to die\n" in run.stdout
    assert "unnamed: got 1 output files without a name (unnamed.txt)" in run.stdout


@pytest.mark.slow
def test_two_jobs_run_at_the_same_time(workflow: Path) -> None:
    run = snakemake(workflow, "met/a.txt", "met/b.txt")
    assert run.returncode == 0, run.stdout


@pytest.mark.slow
def test_a_module_that_cannot_be_preloaded_ends_the_run_with_its_name(workflow: Path) -> None:
    run = snakemake(workflow, "--forkserver-preload", "json,no_such_module", "facts/a.json")
    assert run.returncode == 1
    assert "cannot preload no_such_module (ModuleNotFoundError: No module named" in run.stdout
    assert not (workflow / "facts").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_main_process(workflow: Path, number: signal.Signals) -> None:
    main = Running(command("never.txt"), cwd=workflow, env=environment(workflow))
    parent = psutil.Process(main.pid)
    wait_for(lambda: "sleep" in names(parent.children(recursive=True)), "a job that hangs", by=main)
    children = parent.children(recursive=True)
    main.send_signal(number)
    assert main.finish()[0] == (-number if number == signal.SIGKILL else 1)
    wait_for(
        lambda: not psutil.wait_procs(children, timeout=0)[1], "the end of all processes", state=lambda: names(children)
    )
    assert (workflow / "cleaned-up").exists() == (number != signal.SIGKILL)


def test_a_file_without_a_name_is_an_error_that_names_it() -> None:
    files = InputFiles(toclone=["a.txt", "b.txt"])
    files._set_name("data", 0)
    with pytest.raises(ValueError, match=r"got 1 input files without a name \(a.txt, b.txt\)"):
        _named("input", files)


def test_time_left_is_the_work_of_the_same_rule_at_the_pace_so_far() -> None:
    progress = Progress(Counter(train=3, score=4))
    for job, start, end in [("train 1", 0, 100), ("train 2", 0, 100), ("score 1", 100, 102)]:
        progress.start(job, start)
        line = progress.finish(job, job.split()[0], job, end)
    # left: 100 s of training and 3 times 2 s of scoring; so far 202 s of work took 102 s
    assert line == f"» 3 of 7 done, about {duration(106 * 102 / 202)} left (finished score 1 in 2 s)"


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (100, "2 min"), (8000, "2 h 13 min")])
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
