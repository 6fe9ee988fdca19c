"""On a real SLURM: what jobs are given, the causes of their ends, and those that a node cannot launch.

This SLURM kills jobs that use more memory than they asked for; of its two nodes, one launches nothing.
"""

import subprocess
from pathlib import Path

import pytest
from cluster import Sandbox
from mini_slurm import HOST, Slurm
from tiny import ROOT
from waiting import wait_for

from snakemake_executor_plugin_submitit import revival
from snakemake_executor_plugin_submitit.causes import causes
from snakemake_executor_plugin_submitit.launch import Launch
from snakemake_executor_plugin_submitit.on_slurm import Slurm as Backend

pytestmark = pytest.mark.slow
BAD = "a-bad-node"  # by its name it is the first that SLURM takes
SLURM = {
    "nodes": (BAD,),
    "lines": """
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill
JobAcctGatherFrequency=1
Licenses=matlab:2
Prolog={folder}/prolog
""",
}
SHELL = (
    "shell: 'env > {output}; scontrol show job $SLURM_JOB_ID >> {output}; squeue -hj $SLURM_JOB_ID -o %k >> {output}'"
)


@pytest.fixture(autouse=True)
def prolog(daemons: Slurm) -> None:
    """What SLURM runs on a node before a job: it fails on one of them."""
    file = daemons.folder / "prolog"
    file.write_text(f'#!/bin/sh\n[ "$SLURMD_NODENAME" != {BAD} ]\n')
    file.chmod(0o755)


def test_jobs_are_given_what_they_ask_for_whatever_the_users_environment_says(
    slurm: Slurm, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = {"EXPORT": "NONE", "PARTITION": "high", "TIMELIMIT": "1", "JOB_NAME": "mine"}
    for name, value in {**{f"SBATCH_{name}": value for name, value in users.items()}, "SRUN_X": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SQUEUE_PARTITION", "high")
    monkeypatch.setenv("SCANCEL_NAME", "no-such-job")
    command = ["scontrol", "create", "reservationname=mine", "users=root", "starttime=now", "duration=60"]
    subprocess.run([*command, f"nodes={HOST}", "corecnt=4"], check=True, capture_output=True)
    try:
        sandbox.rule("facts", name="gpu", resources="runtime=5, mem_mb=2000, gpu=1, nodes=1, tasks=1, cpus_per_task=2")
        sandbox.rule("facts", name="typed", resources="runtime=5, mem_mb=2000, gpus='a100:2'")
        sandbox.rule("facts", name="gres", resources="runtime=5, mem_mb=2000, gres='gpu:a100:1'")
        asked = "runtime=7, mem_mb=2000, reservation='mine', licenses='matlab:1', slurm_extra='--no-requeue', my_own=1"
        sandbox.add(f"\nrule shell:\n    output: 'shell.txt'\n    resources: {asked}\n    {SHELL}\n", "shell.txt")
        script = f'script: "{ROOT}/workflow/scripts/stage.py"'
        stage = "params: stage='cluster_stages:facts'"
        own = f"output: out='shadow.txt'\n    resources: runtime=5, mem_mb=2000\n    shadow: 'minimal'\n    {stage}"
        sandbox.add(f"\nrule shadow:\n    {own}\n    {script}\n", "shadow.txt")
        lines = "export FROM_SETUP=1\nexport ALSO=2"
        sandbox.wrap("sbatch", 'cp "$1" "$(mktemp -p . XXXXXX.script)"')
        options = ["--submitit-setup", lines, "--precommand", "export TOLD=3", "--resources", "my_own=5"]
        code, output = sandbox.run(*options, "--submitit-python", "env WRAPPED=4 python", "--config", "run=pilot")
    finally:
        slurm.clear()
        subprocess.run(["scontrol", "delete", "reservationname=mine"], check=True)
    assert code == 0, output
    assert output.count("SBATCH_PARTITION=high (instead, set slurm_partition)") == 1
    gpu, typed, gres, shadow = (sandbox.facts(name) for name in ("gpu/0", "typed/0", "gres/0", "shadow.txt"))
    assert [len(one["CUDA_VISIBLE_DEVICES"].split(",")) for one in (gpu, typed, gres)] == [1, 2, 1]
    assert [one["gpus"] for one in (gpu, typed, gres)] == [1, 2, 1]
    assert gpu["SLURM_CPUS_PER_TASK"] == "2" and gpu["SLURM_JOB_PARTITION"] == "low"
    assert "/.snakemake/shadow/" in shadow["folder"] and gpu["folder"] == str(sandbox.folder)
    text = (sandbox.folder / "shell.txt").read_text()
    found = ("FROM_SETUP=1", "ALSO=2", "TOLD=3", "WRAPPED=4", "Requeue=0", "TimeLimit=00:07:00", "Licenses=matlab:1")
    assert not [words for words in (*found, "Reservation=mine", "JobName=shell.pilot.") if words not in text], text
    assert text.splitlines()[-1].strip() == "shell" and "SBATCH_" not in text and "submitit" not in _wckey(text)
    scripts = [file.read_text() for file in sandbox.folder.glob("*.script")]
    assert len(scripts) == 5 and not any("wckey" in script for script in scripts)
    assert any("--cpus-per-task=2 sh -c" in script for script in scripts)


def test_a_job_that_slurm_or_its_setup_ends_has_its_cause_in_their_words(slurm: Slurm, sandbox: Sandbox) -> None:
    eat = 'python -c "import time; x = bytearray(800 * 2**20); time.sleep(60)"'
    rule = f"\nrule eat:\n    output: 'eat.txt'\n    resources: mem_mb=500, runtime=5\n    shell: '''{eat}'''\n"
    sandbox.add(rule, "eat.txt")
    sandbox.rule("count", resources="runtime=5, mem_mb=2000, slurm_extra='--no-requeue'", steps=30, until="go")
    running = sandbox.start()
    wait_for((sandbox.folder / "count/0.kept").exists, "a checkpoint", by=running, state=slurm.jobs)
    (log,) = sandbox.folder.glob("logs/count/*.log")
    job = log.read_text().partition("SLURM job ")[2].partition(",")[0]
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    code, output = running.finish()
    assert code == 1 and "asked it to stop (it is preempted), and it was submitted with --no-requeue" in output, output
    *own, used = causes(sandbox.folder.rglob("eat*/*.err"), {"mem_mb": 500})
    assert any(line.startswith("slurmstepd") and "exceeded memory limit" in line for line in own), own
    assert all(line in output for line in (*own, used)), output
    assert used.startswith("it used ") and used.endswith(" and had 500 MB; raise mem_mb (now 500)"), used
    sandbox.rule("facts", resources="runtime=5, mem_mb=2000")
    code, output = sandbox.run("facts/0", "--submitit-setup", "true\nmodule_of_none load cuda")
    assert code == 1, output
    words = "error: submitit-setup: module_of_none load cuda ended with exit code 127"
    assert causes(sandbox.folder.rglob("facts*/*.err")) == [words]


def test_a_job_that_its_node_could_not_launch_starts_on_another_a_few_times(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend(signal_delay=10, max_timeouts=1, launch=Launch())
    command = ["sbatch", "--parsable", "--partition=all", "--requeue", f"--output={tmp_path}/out", "--mem=50"]
    done = subprocess.run([*command, "--wrap=echo on $SLURMD_NODENAME"], check=True, capture_output=True, text=True)
    job = done.stdout.strip()
    held = lambda: backend.states([job])[job].reason == "launch failed requeued held"  # noqa: E731 # pyright: ignore
    wait_for(held, "a launch that fails", over=slurm.is_over, state=lambda: backend.states([job]))
    try:
        assert backend.revive(job)
        shown = subprocess.run(["scontrol", "show", "job", job], check=True, capture_output=True, text=True).stdout
        assert f"ExcNodeList={BAD}" in shown, shown
        over = lambda: (tmp_path / "out").exists() and "on " in (tmp_path / "out").read_text()  # noqa: E731
        wait_for(over, "the job to run", over=slurm.is_over, state=slurm.jobs)
        assert f"on {HOST}" in (tmp_path / "out").read_text()
        monkeypatch.setattr(revival, "revive", lambda identifier: True)  # as if it were held each time
        assert [backend.revive(job) for _ in range(3)] == [True, True, False]
    finally:
        subprocess.run(["scontrol", "update", f"NodeName={BAD}", "State=RESUME"], check=True)


def test_a_run_goes_on_where_a_node_cannot_launch(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("facts", resources="runtime=5, mem_mb=2000, slurm_partition='all'")
    try:
        code, output = sandbox.run()
    finally:
        subprocess.run(["scontrol", "update", f"NodeName={BAD}", "State=RESUME"], check=True)
    assert code == 0 and output.count("could not be launched on its node; it is released again") == 1, output


def _wckey(text: str) -> str:
    return "".join(line for line in text.splitlines() if "WCKey" in line)
