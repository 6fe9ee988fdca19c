"""What a job's life may be on a real SLURM that is slow, sick or full: nothing is lost, and nothing runs twice."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cluster import Sandbox
from mini_slurm import HOST, Slurm
from tiny import ROOT
from waiting import Running, wait_for

from snakemake_executor_plugin_submitit.entries import Entries

pytestmark = pytest.mark.slow
SLURM: dict[str, object] = {}
BESIDE = """
from snakemake_executor_plugin_submitit.beside import hold_free_for_any

onstart:
    hold_free_for_any(workflow)
"""
SEVERAL = 4  # polls that find something before a test goes on


def until_started(slurm: Slurm, sandbox: Sandbox, running: Running, jobs: int = 1) -> None:
    started = lambda: all(sandbox.starts(f"count/{i}") for i in range(jobs))  # noqa: E731
    wait_for(started, f"the start of {jobs} jobs", by=running, state=slurm.jobs)


def until_asked_again(sandbox: Sandbox, running: Running) -> None:
    """Returns after some more polls."""
    before = len(sandbox.calls("squeue"))
    wait_for(lambda: len(sandbox.calls("squeue")) >= before + SEVERAL, "more polls", by=running)


def outcomes(sandbox: Sandbox, ending: str = "json") -> list[Path]:
    return sorted((sandbox.folder / ".snakemake/submitit").glob(f"*/*.{ending}"))


def test_an_outcome_that_is_seen_late_is_awaited(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("late")
    sandbox.wrap("squeue", "")
    running = sandbox.start()
    wait_for(lambda: outcomes(sandbox, "late"), "the end of the job", by=running, state=slurm.jobs)
    wait_for(lambda: not slurm.jobs(), "the job to be over", by=running, state=slurm.jobs)
    until_asked_again(sandbox, running)
    (late,) = outcomes(sandbox, "late")
    late.rename(late.with_suffix(""))
    code, output = running.finish()
    assert code == 0 and "lost" not in output, output
    assert (sandbox.folder / "late/0").read_text() == "made"


def test_what_is_whole_counts_as_done_and_is_not_deleted(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("late")
    code, output = sandbox.run("--submitit-patience", "3")
    assert code == 0 and "what it made is whole: it counts as done" in output, output
    assert (sandbox.folder / "late/0").read_text() == "made"


def test_a_queue_that_is_behind_is_no_loss(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", jobs=2, steps=3, until="go")
    sandbox.wrap("squeue", "test -e behind && exit 0")
    (sandbox.folder / "behind").touch()
    running = sandbox.start()
    until_started(slurm, sandbox, running, 2)
    until_asked_again(sandbox, running)
    (sandbox.folder / "behind").unlink()
    until_asked_again(sandbox, running)
    sandbox.release()
    code, output = running.finish()
    assert code == 0, output
    assert [sandbox.starts(f"count/{i}") for i in range(2)] == [[0], [0]]


def test_other_words_of_sbatch_are_not_its_id(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", jobs=2, steps=3, until="go")
    sandbox.wrap("sbatch", 'echo "job 12 of 100 this month"')
    sandbox.wrap("squeue", "")
    running = sandbox.start("--submitit-patience", "2")
    until_started(slurm, sandbox, running, 2)
    until_asked_again(sandbox, running)
    sandbox.release()
    code, output = running.finish()
    assert code == 0, output
    assert [sandbox.starts(f"count/{i}") for i in range(2)] == [[0], [0]]


def test_a_submission_that_was_killed_before_its_end_is_made_again(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", jobs=2, steps=3)
    sandbox.wrap("sbatch", '"$real" "$@"; touch sent; while true; do sleep 1; done')
    running = sandbox.start()
    wait_for((sandbox.folder / "sent").exists, "sbatch", by=running, state=slurm.jobs)
    running.end()
    sandbox.wrap("sbatch", "")
    code, output = sandbox.run()
    assert code == 0 and "killed before it wrote all of its files: that job is cancelled" in output, output
    assert [sandbox.starts(f"count/{i}") for i in range(2)] == [[0], [0]]


def test_silence_of_slurm_and_its_end_are_said_once_and_what_waits_now_and_then(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", steps=3, until="go")
    sandbox.rule("facts", resources="runtime=5, mem_mb=100, slurm_extra='--hold'")
    away = 'echo "squeue: error: Unable to contact slurm controller (connect failure)" >&2; exit 1'
    sandbox.wrap("squeue", f"test -e away && {{ {away}; }}")
    running = sandbox.start("--submitit-report", "1")
    until_started(slurm, sandbox, running)
    line = "in the queue: 1 pending (1 JobHeldUser), 1 running; the longest waits "
    wait_for(lambda: line in running.output, "a line about the queue", by=running)
    assert ": facts i=0" in running.output.partition(line)[2].partition("\n")[0]
    (sandbox.folder / "away").touch()
    until_asked_again(sandbox, running)
    (sandbox.folder / "away").unlink()
    until_asked_again(sandbox, running)
    for job, state in slurm.jobs().items():
        if state == "PENDING":
            subprocess.run(["scontrol", "release", job], check=True)
    sandbox.release()
    code, output = running.finish()
    assert code == 0, output
    assert output.count("does not answer (squeue: error: Unable to contact slurm controller") == 1
    assert output.count("SLURM answers again") == 1


def test_a_damaged_outcome_ends_no_run(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", jobs=2, steps=3, until="go")
    running = sandbox.start()
    until_started(slurm, sandbox, running, 2)
    running.end()
    folder = outcomes(sandbox, "started")[0].parent
    (folder / "0.0.json").write_text('{"version": 1, "err')  # of a job that runs: the next look finds another
    sandbox.release()
    wait_for(lambda: not slurm.jobs(), "the end of the jobs", over=slurm.is_over, state=slurm.jobs)
    (folder / "1.0.json").write_bytes(b"\0" * 40)
    code, output = sandbox.run("--submitit-patience", "2", "--latency-wait", "2")
    assert code == 0 and "it counts as done" in output, output
    assert [sandbox.starts(f"count/{i}") for i in range(2)] == [[0], [0]]


def test_a_journal_that_lost_its_lines_finds_the_jobs_again(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", jobs=2, steps=3, until="go")
    running = sandbox.start()
    until_started(slurm, sandbox, running, 2)
    running.end()
    journal = sandbox.folder / ".snakemake/submitit/journal.jsonl"
    journal.write_bytes(b"\0" * 100 + b"\n" + b'{"version": 2, "event": "from the future"}\nhalf a li\n\n\xff\n')
    again = sandbox.start()
    wait_for(lambda: again.output.count("was submitted before: job") == 2, "the jobs to be found", by=again)
    sandbox.release()
    code, output = again.finish()
    assert code == 0 and f"4 lines of {journal} cannot be read" in output, output
    assert [sandbox.starts(f"count/{i}") for i in range(2)] == [[0], [0]]


def test_an_input_from_a_clock_that_is_ahead_is_no_change_and_another_input_is_one(
    slurm: Slurm, sandbox: Sandbox
) -> None:
    given = sandbox.folder / "given"
    given.write_text("1")
    sandbox.rule("count", jobs=2, steps=3, until="go", input="given")
    subprocess.run(["touch", "-d", "1 hour", given], check=True)
    running = sandbox.start()
    until_started(slurm, sandbox, running, 2)
    running.end()
    again = sandbox.start()
    wait_for(lambda: again.output.count("was submitted before: job") == 2, "the jobs", by=again)
    again.end()
    given.write_text("22")
    third = sandbox.start()
    wait_for(lambda: all(len(sandbox.starts(f"count/{i}")) == 2 for i in range(2)), "two more starts", by=third)
    assert third.output.count("its inputs have changed since: that job is cancelled") == 2
    sandbox.release()
    code, output = third.finish()
    assert code == 0, output


def test_jobs_that_nothing_needs_now_are_named(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", jobs=2, steps=3, until="go")
    (sandbox.folder / "there").touch()
    sandbox.add("\nrule there:\n    output: 'there'\n    shell: 'touch {output}'\n")
    running = sandbox.start()
    until_started(slurm, sandbox, running, 2)
    running.end()
    jobs = " ".join(sorted(slurm.jobs()))
    code, output = sandbox.run("there")
    assert code == 0 and "Nothing to be done" in output, output
    assert "2 jobs of an earlier run are still in the queue" in output and f"`scancel {jobs}`" in output, output
    sandbox.release()
    wait_for(lambda: not slurm.jobs(), "the end of the jobs", over=slurm.is_over, state=slurm.jobs)
    code, output = sandbox.run("there")
    assert code == 0 and "nothing needs now what it made: count/0, count/1; a run that does" in output, output
    assert not Entries(sandbox.folder / ".snakemake/submitit").live
    code, output = sandbox.run("there")
    assert code == 0 and "of an earlier run" not in output, output
    code, output = sandbox.run()
    assert code == 0 and output.count("was submitted before: job") == 2, output
    assert [sandbox.starts(f"count/{i}") for i in range(2)] == [[0], [0]]
    assert not Entries(sandbox.folder / ".snakemake/submitit").places


def test_plain_snakemake_runs_nothing_that_slurm_has(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", jobs=2, steps=3, until="go")
    running = sandbox.start()
    until_started(slurm, sandbox, running, 2)
    jobs = " ".join(sorted(slurm.jobs()))
    running.end()
    again = sandbox.options
    sandbox.add(BESIDE)
    for executor in ("forkserver", "local"):
        sandbox.options = ["--executor", executor, "--cores", "1"]
        code, output = sandbox.run()
        assert code == 1 and "they make count/0, count/1" in output and f"`scancel {jobs}`" in output, output
        assert "Traceback" not in output, output
    sandbox.options = again
    sandbox.release()
    code, output = sandbox.run()
    assert code == 0 and [sandbox.starts(f"count/{i}") for i in range(2)] == [[0], [0]], output
    sandbox.options = ["--executor", "forkserver", "--cores", "1"]
    assert sandbox.run()[0] == 0


def test_plain_snakemake_waits_for_what_squeue_may_not_list_yet(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", jobs=2, steps=3, until="go")
    sandbox.wrap("squeue", "test -e behind && exit 0")
    running = sandbox.start("--submitit-patience", "4000")
    until_started(slurm, sandbox, running, 2)
    jobs = " ".join(sorted(slurm.jobs()))
    running.end()
    (sandbox.folder / "behind").touch()
    again, sandbox.options = sandbox.options, ["--executor", "forkserver", "--cores", "1"]
    code, output = sandbox.run()
    assert code == 1 and "squeue does not list them yet; they make count/0, count/1" in output, output
    (seconds,) = re.findall(rf"or cancel them with `scancel {jobs}`; or wait (\d+) seconds", output)
    assert 2000 < int(seconds) <= 4000
    sandbox.options = again
    sandbox.release()
    (sandbox.folder / "behind").unlink()
    code, output = sandbox.run()
    assert code == 0 and [sandbox.starts(f"count/{i}") for i in range(2)] == [[0], [0]], output


def test_jobs_that_died_while_nobody_looked_are_made_by_the_next_command(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", jobs=2, steps=3, until="go")
    running = sandbox.start()
    until_started(slurm, sandbox, running, 2)
    running.end()
    subprocess.run(["scancel", sorted(slurm.jobs())[0]], check=True)
    wait_for(lambda: len(slurm.jobs()) == 1, "the end of a job", over=slurm.is_over, state=slurm.jobs)
    sandbox.release()
    code, output = sandbox.run("--latency-wait", "2")
    assert code == 0 and "ended while nobody looked (it was cancelled); it is submitted again" in output, output
    assert sorted(len(sandbox.starts(f"count/{i}")) for i in range(2)) == [1, 2]


def test_a_bundle_that_a_user_cancels_is_not_submitted_again(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", jobs=3, resources="runtime=5, mem_mb=100, bundle=3", steps=3, until="go")
    running = sandbox.start("--latency-wait", "2")
    begun = lambda: any(sandbox.starts(f"count/{i}") for i in range(3))  # noqa: E731
    wait_for(begun, "the start of the first job", by=running, state=slurm.jobs)
    subprocess.run(["scancel", *slurm.jobs()], check=True)
    code, output = running.finish()
    assert code == 1 and output.count("): it was cancelled") == 3 and len(sandbox.submitted()) == 1, output


def test_no_more_jobs_than_asked_for_are_in_the_queue_and_files_of_good_ones_are_removed(
    slurm: Slurm, sandbox: Sandbox
) -> None:
    sandbox.rule("facts", jobs=6)
    (sandbox.folder / "most").write_text("0")
    count = 'n=$("$real" -h -r | wc -l); test "$n" -gt "$(cat most)" && echo "$n" > most'
    sandbox.wrap("squeue", count)
    code, output = sandbox.run("--jobs", "2")
    assert code == 0 and 1 <= int((sandbox.folder / "most").read_text()) <= 2, output
    code, output = sandbox.run("--jobs", "2")
    assert code == 0 and not outcomes(sandbox), output


def test_evaluations_wait_for_the_bundle_that_feeds_them(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("facts", jobs=4, name="fuse", resources="runtime=5, mem_mb=100, bundle=4", seconds=2)
    sandbox.rule("facts", jobs=4, name="evaluate", resources="runtime=5, mem_mb=100, bundle=4", input="fuse/{i}")
    code, output = sandbox.run()
    assert code == 0, output
    assert len({sandbox.facts(f"evaluate/{i}")["pid"] for i in range(4)}) == 1


def test_a_rule_without_output_runs_as_any_other(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.add("\nrule alone:\n    resources: runtime=5, mem_mb=500\n    shell: 'touch done.txt'\n")
    code, output = sandbox.run("alone")
    assert code == 0 and (sandbox.folder / "done.txt").exists(), output


def test_without_slurm_on_the_path_nothing_begins(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.rule("facts")
    sandbox.add("\nlocalrules: here\nrule here:\n    output: 'here'\n    shell: 'touch {output}'\n", "here")
    monkeypatch.setenv("PATH", "/nowhere")
    code, output = sandbox.run()
    assert code == 1 and "no SLURM here (sbatch, squeue" in output and "Traceback" not in output, output
    assert not (sandbox.folder / "here").exists()


@pytest.fixture
def literal(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The sandbox with the shipped profile, but for its pauses."""
    shutil.copytree(ROOT / "profiles/slurm", tmp_path / "home/snakemake/slurm")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    sandbox.options = ["--profile", "slurm", "--submitit-poll", "1", "--latency-wait", "2"]
    return sandbox


def test_with_the_shipped_profile_every_failure_is_told_whole(slurm: Slurm, literal: Sandbox) -> None:
    literal.rule("fail")
    literal.rule("die")
    literal.rule("facts", name="refused", resources="slurm_partition='nowhere'")
    group = "    group: 'ab'\n    resources: runtime=5, mem_mb=500\n    log: 'a.log'\n"
    shell = "    shell: 'echo what went wrong > {log}; false'\n"
    literal.add(f"\nrule a:\n    output: 'a.txt'\n{group}{shell}", "a.txt")
    literal.add("\nlocalrules: b, die_here\nrule b:\n    output: 'b.txt'\n    log: 'b.log'\n" + shell, "b.txt")
    literal.rule("die", name="die_here")
    code, output = literal.run()
    assert code == 1, output
    assert f"b failed on {HOST}: its command is above\nThe end of its log b.log:\n    what went wrong" in output
    assert f"die_here i=0 failed on {HOST}, which is this host" in output and "logs/die_here/0.log" in output
    assert "ValueError: the loss is nan\nThe end of its log logs/fail/0.log:" in output
    assert f"fail i=0 failed on {HOST} (job " in output and "line 39" in output
    assert f"die i=0 is lost on {HOST} (job " in output
    assert "): its process failed or was killed\n" in output and "The end of its log logs/die/0.log:\n" in output
    assert "refused i=0 was not submitted: sbatch: error: invalid partition specified: nowhere" in output
    assert f"group ab (a) failed on {HOST} (job " in output and "its Snakemake ended with exit code 1" in output
    assert "what went wrong" in output


def test_a_driver_that_is_a_job_leaves_its_jobs_and_starts_again(slurm: Slurm, literal: Sandbox) -> None:
    literal.rule("count", jobs=2, steps=3, until="go")
    command = ["sbatch", "--parsable", "--time=30", "--mem=1000", str(ROOT / "profiles/slurm/driver.sh")]
    environment, options = literal.environment, literal.options[2:]
    done = subprocess.run([*command, *options], cwd=literal.folder, env=environment, text=True, capture_output=True)
    driver = done.stdout.strip()
    log = literal.folder / "driver.log"
    words = lambda: log.read_text() if log.exists() else ""  # noqa: E731
    started = lambda: all(literal.starts(f"count/{i}") for i in range(2))  # noqa: E731
    wait_for(started, "the jobs", over=slurm.is_over, state=words)
    subprocess.run(["scancel", "--batch", "--signal=USR1", driver], check=True)  # as SLURM does near the limit
    again = lambda: words().count("was submitted before: job") == 2  # noqa: E731
    wait_for(again, "the second start of the driver", over=slurm.is_over, state=words)
    literal.release()
    wait_for(lambda: not slurm.jobs(), "the end of all jobs", over=slurm.is_over, state=words)
    assert [literal.starts(f"count/{i}") for i in range(2)] == [[0], [0]], words()
    assert all((literal.folder / f"count/{i}").exists() for i in range(2)), words()
    assert "its 2 jobs stay where they are" in words(), words()
