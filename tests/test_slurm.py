"""The submitit executor on a real SLURM that these tests start, and what it does when things go wrong."""

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from cluster import Sandbox
from mini_slurm import Slurm
from tiny import ROOT
from waiting import Running, names, wait_for

pytestmark = pytest.mark.slow
MAX_ARRAY = 25
SLURM = {"max_array": MAX_ARRAY}


def test_jobs_with_equal_needs_are_one_array_and_get_what_they_ask_for(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("facts", jobs=4, resources="runtime=5, mem_mb=300, cpus_per_task=2, gpus=1, slurm_partition='high'")
    code, output = sandbox.run()
    assert code == 0, output
    (batch,) = sandbox.submitted()
    assert len(batch["jobs"]) == 4
    found = [sandbox.facts(f"facts/{i}") for i in range(4)]
    assert len({one["SLURM_ARRAY_JOB_ID"] for one in found}) == 1
    for one in found:
        assert one["SLURM_CPUS_PER_TASK"] == "2" and one["SLURM_MEM_PER_NODE"] == "300"
        assert one["SLURM_JOB_PARTITION"] == "high" and one["HF_HUB_OFFLINE"] == "1" and one["OMP_NUM_THREADS"] == "2"
        assert one["CUDA_VISIBLE_DEVICES"] in {"0", "1"} and one["gpus"] == 1 and one["queue_seconds"] > 0
    log = (sandbox.folder / "logs/facts/0.log").read_text()
    assert log.startswith("host ") and "SLURM job" in log and "300 MB" in log and "GPU" in log
    assert "a detail for the log" in log
    header, figures = (sandbox.folder / "benchmarks/facts/0.tsv").read_text().splitlines()
    assert float(dict(zip(header.split("\t"), figures.split("\t"), strict=True))["max_rss"]) > 10


def test_short_jobs_share_a_process_and_rules_without_a_stage_and_groups_run_too(
    slurm: Slurm, sandbox: Sandbox
) -> None:
    sandbox.rule("facts", jobs=5, resources="runtime=5, mem_mb=300, bundle=3")
    shell = "resources: runtime=5, mem_mb=500\n    shell: 'echo $SLURM_JOB_ID > {output}'\n"
    sandbox.add(f"\nrule shell:\n    output: 'shell.txt'\n    {shell}", "shell.txt")
    sandbox.add(f"\nrule a:\n    output: 'a.txt'\n    group: 'ab'\n    {shell}")
    sandbox.add(f"\nrule b:\n    input: 'a.txt'\n    output: 'b.txt'\n    group: 'ab'\n    {shell}", "b.txt")
    code, output = sandbox.run()
    assert code == 0, output
    pids = [sandbox.facts(f"facts/{i}")["pid"] for i in range(5)]
    assert sorted(pids.count(pid) for pid in set(pids)) == [2, 3]
    shell_id, a, b = ((sandbox.folder / f"{name}.txt").read_text() for name in ("shell", "a", "b"))
    assert a == b != shell_id


def test_a_failure_shows_the_end_of_the_log_and_the_others_finish(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("fail")
    sandbox.rule("facts", jobs=2)
    code, output = sandbox.run()
    assert code == 1
    assert "ValueError: the loss is nan" in output and "line 39" in output and "line 3\n" not in output
    assert "logs/fail/0.log" in output
    assert all((sandbox.folder / f"facts/{i}").exists() for i in range(2))


def test_a_job_that_is_preempted_goes_on_where_it_was(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", steps=30, until="go")
    running = sandbox.start("--submitit-max-timeouts", "0")  # a preemption is no time limit
    wait_for((sandbox.folder / "count/0.kept").exists, "a checkpoint", by=running, state=slurm.jobs)
    urgent = ["sbatch", "--partition=high", "--cpus-per-task=16", "--mem=100", "--wrap=sleep 3", "--output=/dev/null"]
    subprocess.run(urgent, check=True, capture_output=True)
    await_second_start(slurm, sandbox, running)
    sandbox.release()
    code, output = running.finish()
    assert code == 0, output
    first, second = sandbox.starts("count/0")
    assert first == 0 and second >= 10
    assert (sandbox.folder / "count/0").read_text() == "30"


def await_starts(slurm: Slurm, sandbox: Sandbox, running: Running, jobs: int) -> None:
    started = lambda: all(sandbox.starts(f"count/{i}") for i in range(jobs))  # noqa: E731
    wait_for(started, f"the start of {jobs} jobs", by=running, state=slurm.jobs)


def await_second_start(slurm: Slurm, sandbox: Sandbox, running: Running) -> None:
    wait_for(lambda: len(sandbox.starts("count/0")) == 2, "a second start", by=running, state=slurm.jobs)


def reach_time_limit_soon(slurm: Slurm) -> str:
    """The one job, which runs, at least 45 seconds before its new time limit: SLURM looks for limits every 30."""
    (job,) = slurm.jobs()
    spent = subprocess.run(["squeue", "--noheader", "--format=%M", f"--jobs={job}"], check=True, capture_output=True)
    parts = spent.stdout.decode().strip().replace("-", ":").split(":")
    seconds = sum(int(part) * size for part, size in zip(reversed(parts), (1, 60, 3600, 86400), strict=False))
    set_time_limit(job, (seconds + 45 + 59) // 60)
    return job


def set_time_limit(job: str, minutes: int) -> None:
    subprocess.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"], check=True)


def test_a_job_at_its_time_limit_goes_on_where_it_was(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", resources="runtime=10, mem_mb=100", steps=30, until="go")
    running = sandbox.start("--submitit-signal-delay", "30", "--submitit-max-timeouts", "5")
    wait_for((sandbox.folder / "count/0.kept").exists, "a checkpoint", by=running, state=slurm.jobs)
    job = reach_time_limit_soon(slurm)
    wait_for(lambda: slurm.jobs().get(job) != "RUNNING", "the time limit", by=running, state=slurm.jobs)
    set_time_limit(job, 10)  # else the second start is told of the end before it has begun
    await_second_start(slurm, sandbox, running)
    sandbox.release()
    code, output = running.finish()
    assert code == 0, output
    first, second = sandbox.starts("count/0")
    assert first == 0 and second >= 10


def test_a_job_that_reaches_its_time_limit_too_often_fails(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", resources="runtime=100, mem_mb=100", steps=30, until="go")
    running = sandbox.start("--submitit-signal-delay", "50", "--submitit-max-timeouts", "0")
    wait_for((sandbox.folder / "count/0.kept").exists, "a checkpoint", by=running, state=slurm.jobs)
    reach_time_limit_soon(slurm)
    code, output = running.finish()
    assert code == 1 and "reached its time limit of " in output and "raise the runtime" in output, output


def test_a_requeued_job_goes_on_from_its_last_checkpoint(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", steps=30, until="go")
    running = sandbox.start()
    wait_for((sandbox.folder / "count/0.kept").exists, "a checkpoint", by=running, state=slurm.jobs)
    (job,) = slurm.jobs()
    subprocess.run(["scontrol", "requeue", job], check=True)
    await_second_start(slurm, sandbox, running)
    sandbox.release()
    code, output = running.finish()
    assert code == 0, output
    assert len(sandbox.starts("count/0")) == 2 and sandbox.starts("count/0")[1] >= 10


def test_a_job_that_is_killed_fails_and_the_next_run_makes_it_alone(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", jobs=4, steps=30, until="go")
    running = sandbox.start()
    await_starts(slurm, sandbox, running, 4)
    logs = [(sandbox.folder / f"logs/count/{i}.log").read_text() for i in range(4)]
    cancelled, killed = (logs[i].partition("SLURM job ")[2].partition(",")[0] for i in (1, 2))
    subprocess.run(["scancel", cancelled], check=True)
    kill(killed, sandbox)
    ended = lambda: not {cancelled, killed} & set(slurm.jobs())  # noqa: E731
    wait_for(ended, f"the end of {cancelled} and {killed}", by=running, state=slurm.jobs)
    sandbox.release()
    code, output = running.finish()
    assert code == 1 and output.count("starting at step") == 2, output
    for number, fate in ((1, "was cancelled"), (2, "failed or was killed")):
        assert re.search(rf"count i={number} .*{fate}", output), output
    assert [(sandbox.folder / f"count/{i}").exists() for i in range(4)] == [True, False, False, True]
    code, output = sandbox.run()
    assert code == 0, output
    assert [len(sandbox.starts(f"count/{i}")) for i in range(4)] == [1, 2, 2, 1]


def kill(job: str, sandbox: Sandbox) -> None:
    """Kills the processes of a task of an array; another SLURM may have its jobs on this machine."""
    found = subprocess.run(["pgrep", "-f", "submitit.core._submit"], capture_output=True, text=True, check=True)
    task = f"SLURM_ARRAY_TASK_ID={job.partition('_')[2]}\n"
    for pid in found.stdout.split():
        if task in (given := _environ(pid) + "\n") and str(sandbox.folder) in given:
            with suppress(ProcessLookupError):  # one of them ends with another
                os.kill(int(pid), signal.SIGKILL)


def test_a_main_process_that_was_killed_goes_on_with_its_jobs(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", jobs=2, steps=30, until="go")
    sandbox.rule("facts", jobs=1)
    facts = sandbox.folder / "facts/0"
    running = sandbox.start()
    await_starts(slurm, sandbox, running, 2)
    wait_for(lambda: facts.exists() or len(slurm.jobs()) == 3, "the third job", by=running, state=slurm.jobs)
    running.end()
    over = lambda: len(slurm.jobs()) < 3  # noqa: E731
    wait_for(facts.exists, "the third job, which finishes while nobody looks", over=over, state=slurm.jobs)
    before = sandbox.facts("facts/0")
    again = sandbox.start()
    wait_for(lambda: again.output.count("was submitted before") >= 2, "the main process", by=again, state=slurm.jobs)
    sandbox.release()
    code, output = again.finish()
    assert code == 0, output
    assert [sandbox.starts(f"count/{i}") for i in range(2)] == [[0], [0]]
    assert sandbox.facts("facts/0") == before


def test_two_main_processes_do_not_share_a_folder(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", steps=30, until="go")
    running = sandbox.start()
    await_starts(slurm, sandbox, running, 1)
    code, output = sandbox.run()
    assert code == 1 and f"process {running.pid} on " in output
    sandbox.release()
    assert running.finish()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_of_the_main_process_cancels_its_jobs(slurm: Slurm, sandbox: Sandbox, number: int) -> None:
    sandbox.rule("count", jobs=3, steps=30, until="go")  # they do not end of themselves
    shell = "touch begun; sleep 100; touch {output}"
    sandbox.add(f"\nlocalrules: near\nrule near:\n    output: 'near'\n    shell: '{shell}'\n", "near")
    running = sandbox.start()
    await_starts(slurm, sandbox, running, 1)
    wait_for((sandbox.folder / "begun").exists, "the local rule", by=running)
    running.send_signal(number)
    assert running.finish()[0] != 0
    assert not (sandbox.folder / "near").exists()
    wait_for(lambda: not slurm.jobs(), "the end of the jobs", state=slurm.jobs)
    assert not any((sandbox.folder / f"count/{i}").exists() for i in range(3))


def test_a_controller_that_is_down_for_a_while_loses_nothing(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", jobs=2, steps=30, until="go")
    after = "\nrule after:\n    input: 'count/0'\n    output: 'after.txt'\n    shell: 'touch {output}'\n"
    sandbox.add(after, "after.txt")  # is submitted while the controller is down
    running = sandbox.start()
    await_starts(slurm, sandbox, running, 2)
    main = psutil.Process(running.pid)
    slurm.stop_controller()
    try:
        sandbox.release()
        wait_for(lambda: "sbatch" in names(main.children(recursive=True)), "an attempt to submit", by=running)
        wait_for(lambda: "sbatch" not in names(main.children(recursive=True)), "the attempt to fail", by=running)
    finally:
        slurm.start_controller()
    code, output = running.finish()
    assert code == 0, output
    assert [sandbox.starts(f"count/{i}") for i in range(2)] == [[0], [0]]


def test_what_slurm_refuses_fails_at_once_in_its_words(slurm: Slurm, sandbox: Sandbox) -> None:
    refused = {
        "partition": ("slurm_partition='nowhere'", "invalid partition"),
        "memory": ("mem_mb=10**9", "node configuration is not available"),
        "time": ("runtime=6000", "PartitionTimeLimit"),
        "option": ("slurm_extra='nice'", "expected long options"),
    }
    for name, (resources, _) in refused.items():
        sandbox.rule("facts", name=name, resources=resources)
    sandbox.rule("facts")
    code, output = sandbox.run()
    assert code == 1 and (sandbox.folder / "facts/0").exists(), output
    for name, (_, words) in refused.items():
        assert re.search(rf"{name} i=0 .*{re.escape(words)}", output), (name, output)
        assert not (sandbox.folder / f"{name}/0").exists()


def test_many_ready_jobs_are_arrays_within_the_limits(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("facts", jobs=60, resources="runtime=5, mem_mb=50")
    code, output = sandbox.run("--jobs", "50", "--max-jobs-per-timespan", "1000/1s", "--quiet", "all")
    assert code == 0, output
    sizes = [len(batch["jobs"]) for batch in sandbox.submitted()]
    assert sum(sizes) == 60 and max(sizes) == MAX_ARRAY - 1
    assert len(sizes) <= 13  # at most 3 of the first 50 jobs, and one each of the 10 that follow when others end


def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error_at_once(slurm: Slurm, sandbox: Sandbox) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    sandbox.rule("facts", resources="runtime=5, mem_mb=1000, gpus=1")
    own = "output: out='shadow.txt'\n    resources: runtime=5, mem_mb=1000, gpus=1\n    shadow: 'minimal'"
    stage = f'params: stage="cluster_stages:facts"\n    script: "{ROOT}/workflow/scripts/stage.py"'
    sandbox.add(f"\nrule shadow:\n    {own}\n    {stage}\n", "shadow.txt")
    os.environ["FUSION_DEVICE"] = ""
    try:
        code, output = sandbox.run("--config", "gpu=1")
    finally:
        del os.environ["FUSION_DEVICE"]
    assert code == 1 and not (sandbox.folder / "shadow.txt").exists(), output
    assert output.count("asked for 1 GPU and PyTorch sees 0") >= 2, output
    found = re.findall(r"\(CUDA_VISIBLE_DEVICES='(\d)', PyTorch", output)
    assert set(found) <= {"0", "1"} and found, output
    for rule in ("facts i=0", "shadow"):
        assert f"{rule} failed on " in output, output


def test_without_slurm_the_same_jobs_share_the_gpus_of_this_machine(sandbox: Sandbox) -> None:
    sandbox.rule("facts", jobs=4, resources="runtime=5, gpus=1", seconds=1.5)
    sandbox.rule("facts", name="two", resources="runtime=5, gpus=3")
    sandbox.rule("fail")
    code, output = sandbox.run("--submitit-cluster", "local", "--submitit-devices", "4,5")
    assert code == 1 and "ValueError: the loss is nan" in output and "asks for 3 GPUs" in output, output
    found = [sandbox.facts(f"facts/{i}") for i in range(4)]
    assert {one["CUDA_VISIBLE_DEVICES"] for one in found} == {"4", "5"}
    for one in found:
        for other in found:
            if one is not other and one["CUDA_VISIBLE_DEVICES"] == other["CUDA_VISIBLE_DEVICES"]:
                assert one["times"][1] <= other["times"][0] or other["times"][1] <= one["times"][0]


def test_a_full_results_folder_fails_clearly_and_leaves_nothing_half_written(slurm: Slurm, sandbox: Sandbox) -> None:
    small = sandbox.folder / "write"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no full file system can be made here: mount needs root")
    try:
        sandbox.rule("write", bytes=200_000)
        sandbox.rule("facts")
        code, output = sandbox.run()
        assert code == 1 and "No space left on device" in output, output
        assert not (small / "0").exists() and (sandbox.folder / "facts/0").exists()
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        code, output = sandbox.run()
        assert code == 1 and "Read-only file system" in output, output
        subprocess.run(["mount", "-o", "remount,rw,size=1m", small], check=True)
        assert sandbox.run()[0] == 0 and (small / "0").stat().st_size == 200_000
    finally:
        subprocess.run(["umount", small], check=True)


def _environ(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().replace(b"\0", b"\n").decode(errors="replace")
    except OSError:
        return ""
