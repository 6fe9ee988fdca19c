"""How jobs share one machine: its GPUs, which are pretended here, its memory and its cores."""

import json
import os
import re
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest
import tiny
import waiting
import yte
from tiny import ROOT
from waiting import Running, wait_for

from snakemake_executor_plugin_forkserver import machine
from snakemake_executor_plugin_forkserver.cards import Cards, share
from snakemake_executor_plugin_forkserver.machine import gpu_memory, limits, memory, visible

STAGES = '''
import json, os, time
from pathlib import Path

def crowd(job):
    """Waits until so many jobs are here together, once; tells how many were on its GPU, and of its rule."""
    kind, gpus = job.params["kind"], os.environ.get("CUDA_VISIBLE_DEVICES", "")
    here = Path(f"here-{kind}-{gpus}-{job.wildcards['i']}")
    here.touch()
    found = {"gpus": gpus, "on_gpu": len(list(Path(".").glob(f"here-*-{gpus}-*"))),
             "of_kind": len(list(Path(".").glob(f"here-{kind}-*")))}
    while len(list(Path(".").glob("here-*"))) < job.params["together"] and not Path("met").exists():
        time.sleep(0.05)  # for ever, if they do not run at the same time
    Path("met").touch()
    here.unlink()
    Path(job.output["out"]).write_text(json.dumps(found))
'''
RULE = """
rule {kind}:
    output: out="{kind}/{{i}}"
    params: stage="sharing_stages:crowd", kind="{kind}", together={together}
    resources: {resources}
    script: "{root}/workflow/scripts/stage.py"
"""


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of 24,000 and 24,576 MB, as nvidia-smi would list them."""
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 24000\necho 24576\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("FUSION_DEVICE", "cpu")  # they are not there


def write(folder: Path, together: int, **rules: str) -> None:
    """A workflow of rules with these resources, each job of which waits for so many others."""
    (folder / "sharing_stages.py").write_text(STAGES)
    facts = {"together": together, "root": ROOT}
    text = "".join(RULE.format(kind=kind, resources=resources, **facts) for kind, resources in rules.items())
    (folder / "Snakefile").write_text(text)


def start(folder: Path, *arguments: str) -> Running:
    program = Path(sys.executable).with_name("snakemake")
    path = f"{folder}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    command = [program, "--executor", "forkserver", "--nolock", *arguments]
    return Running(command, cwd=folder, env={**os.environ, "PYTHONPATH": path})


def made(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((folder / kind).glob("[0-9]"))]


@pytest.mark.slow
@pytest.mark.usefixtures("gpus")
def test_as_many_jobs_share_a_gpu_as_fit_and_stages_on_the_cpu_run_beside_them(tmp_path: Path) -> None:
    write(tmp_path, 5, small="gpus=1, gpu_mem_mb=10000", cpu="mem_mb=10")
    targets = [*(f"small/{i}" for i in range(6)), "cpu/0"]
    running = start(tmp_path, *targets, "--cores", "7", "--resources", "gpu_share=2000")
    code, output = running.finish()
    assert code == 0, output
    small = made(tmp_path, "small")
    assert {one["gpus"] for one in small} == {"0", "1"} and max(one["on_gpu"] for one in small) == 2, small
    assert max(one["of_kind"] for one in small) <= 4 and made(tmp_path, "cpu")[0]["gpus"] == ""
    assert "» jobs share 7 cores, 2 GPUs of 24000 MB\n" in output


@pytest.mark.slow
@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(("options", "together"), [([], 2), (["--forkserver-jobs-per-gpu", "2"], 4)])
def test_jobs_that_say_nothing_of_memory_have_a_gpu_or_an_equal_part_of_one(
    tmp_path: Path, options: list[str], together: int
) -> None:
    write(tmp_path, together, any="gpus=1", large="gpus=1, gpu_mem_mb=30000")
    run = [*options, "--cores", "6", "--resources", "gpu_share=2000"]
    code, output = start(tmp_path, *(f"any/{i}" for i in range(6)), *run).finish()
    assert code == 0, output
    assert Counter(one["on_gpu"] for one in made(tmp_path, "any")).keys() <= set(range(1, together // 2 + 1))
    code, output = start(tmp_path, "large/0", "large/1", *run).finish()
    assert code == 0 and output.count("» jobs of large ask for 30000 MB of a GPU (gpu_mem_mb), which has 24000") == 1


@pytest.mark.slow
def test_jobs_run_together_as_far_as_the_memory_goes(tmp_path: Path) -> None:
    write(tmp_path, 3, fits="mem_mb=300", half="mem_mb=600", large="mem_mb=9000")
    options = ["--cores", "4", "--resources", "mem_mb=1000"]
    code, output = start(tmp_path, "fits/0", "fits/1", "fits/2", *options).finish()
    assert code == 0 and "» jobs share 4 cores, 1000 MB of memory (mem_mb)\n" in output, output
    code, output = start(tmp_path, "half/0", "half/1", "half/2", "large/0", *options).finish()
    assert code == 0 and [one["of_kind"] for one in made(tmp_path, "half")] == [1, 1, 1], output
    words = (
        "» jobs of large ask for all of the 1000 MB of memory here, or for more (mem_mb): only jobs that ask for none"
    )
    assert output.count(words) == 1, output


@pytest.mark.slow
def test_gpus_that_no_job_asks_for_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    write(tmp_path, 1, cpu="mem_mb=10")
    code, output = start(tmp_path, "cpu/0", "--cores", "1").finish()
    assert code == 0 and "» no job asks for one of 2 GPUs (resources: gpus); all use CPUs" in output, output


@pytest.mark.slow
def test_stages_that_compute_ask_for_a_gpu_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cards, expected in (("0,1", {"1"}), ("", set[str]())):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cards)
        output = tiny.snakemake(tmp_path, "-n", "tables").output
        jobs = re.findall(r"^(?:local)?rule (finetune_task|fuse|evaluate_\w+):\n((?: {4}.*\n)*)", output, re.MULTILINE)
        assert {name for name, _ in jobs} >= {"finetune_task", "fuse", "evaluate_pretrained", "evaluate_individual"}
        assert {count for _, block in jobs for count in re.findall(r"gpus=(\d)", block)} == expected


@pytest.mark.parametrize(
    ("wanted", "has", "jobs", "expected"),
    [
        (0, 24000, 1, 1000),
        (0, 24000, 3, 333),
        (8000, 24000, 1, 333),  # three fit
        (8100, 24000, 4, 337),
        (1, 24000, 1, 1),
        (30000, 24000, 1, 1000),
        (8000, 0, 1, 1000),  # how much there is is not known
    ],
)
def test_a_job_has_the_part_of_a_gpu_that_its_memory_is(wanted: int, has: int, jobs: int, expected: int) -> None:
    assert share(wanted, has, jobs) == expected


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([1000, 1000], ["3", "5"]),
        ([500, 500, 500, 500], ["3", "5", "3", "5"]),  # spread over them
        ([700, 400, 400, 250], ["3", "5", "5", "3"]),  # where they fit
    ],
)
def test_jobs_have_the_emptiest_gpu_where_they_fit(shares: list[int], expected: list[str]) -> None:
    cards = Cards(["3", "5"])
    with ExitStack() as stack:
        found = [stack.enter_context(cards.lent(1, part))["CUDA_VISIBLE_DEVICES"] for part in shares]
    assert found == expected


def test_a_gpu_is_lent_to_one_job_at_a_time() -> None:
    cards, has_both, done = Cards(["3", "5"]), Event(), Event()
    with cards.lent(1) as one, cards.lent(1) as other, cards.lent(0) as none:
        assert [found["CUDA_VISIBLE_DEVICES"] for found in (one, other, none)] == ["3", "5", ""]

    def take_both() -> None:
        with cards.lent(2) as both:
            assert both["CUDA_VISIBLE_DEVICES"] == "3,5"
            has_both.set()
            assert done.wait(waiting.BACKSTOP)

    with cards.lent(1):
        thread = Thread(target=take_both)
        thread.start()
        assert not has_both.is_set()
    assert has_both.wait(waiting.BACKSTOP)
    done.set()
    thread.join()


def test_small_jobs_do_not_pass_one_that_waits_for_a_whole_gpu() -> None:
    cards, order = Cards(["3"]), []

    def take(name: str, part: int) -> None:
        with cards.lent(1, part):
            order.append(name)

    with cards.lent(1, 400):
        threads = [Thread(target=take, args=("whole", 1000)), Thread(target=take, args=("small", 400))]
        for number, thread in enumerate(threads, 2):
            thread.start()
            wait_for(lambda asked=number: cards._asked == asked, "the thread")
        assert order == []
    for thread in threads:
        thread.join()
    assert order == ["whole", "small"]


def test_more_gpus_than_there_are_is_an_error_and_none_at_all_changes_nothing() -> None:
    with pytest.raises(ValueError, match="got gpus: 3, expected at most the 2 GPUs"), Cards(["3", "5"]).lent(3):
        pass
    with Cards([]).lent(1) as environment:
        assert environment == {}


@pytest.mark.parametrize(("said", "expected"), [("3,5", ["3", "5"]), ("", []), ("-1", []), ("GPU-1a2b", ["GPU-1a2b"])])
def test_the_gpus_are_those_that_are_visible(said: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert visible() == expected


@pytest.mark.usefixtures("gpus")
def test_gpus_have_the_memory_of_the_smallest_and_parts_of_one_have_no_known_size() -> None:
    assert visible() == ["0", "1"] and gpu_memory(["0", "1"]) == 24000 and gpu_memory(["MIG-1a2b"]) == 0


@pytest.mark.parametrize(
    ("group", "slurm", "expected"),
    [
        ("max", "", None),
        ("1073741824", "", 1024),
        ("max", "2000", 2000),
        ("1073741824", "2000", 1024),
        ("max", "0", None),
    ],
)
def test_the_memory_is_that_which_a_container_or_a_slurm_job_has(
    group: str, slurm: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(f"{group}\n")
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", slurm)
    assert memory() == (expected or psutil.virtual_memory().total // 2**20)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("arguments", "are_limited"),
    [([], True), (["-e", "local"], True), (["--executor=forkserver"], True), (["--executor", "kubernetes"], False)],
)
def test_the_default_profile_shares_out_this_machine_and_no_other(
    arguments: list[str], are_limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["snakemake", *arguments])
    monkeypatch.setattr(os, "environ", {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"})
    found = yte.process_yaml((ROOT / "profiles/default/config.yaml").read_text())
    expected = [f"mem_mb={int(0.9 * memory())}", "gpu_share=2000"]
    assert found.get("resources") == (expected if are_limited else None) and limits(sys.argv) == expected * are_limited
    assert found["set-resources"]["fuse"] == {"gpus": 1}
