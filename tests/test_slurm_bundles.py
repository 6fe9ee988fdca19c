"""Jobs that share SLURM jobs, on a real SLURM: how many tasks they are, and what they wait for."""

import pytest
from cluster import Sandbox
from mini_slurm import Slurm
from waiting import wait_for

pytestmark = pytest.mark.slow
SLURM: dict[str, object] = {}
BUNDLE = "runtime=5, mem_mb=100, my_own=1, bundle=8"


@pytest.mark.parametrize("limit", [["--jobs", "3"], ["--resources", "my_own=3"]], ids=["jobs", "resources"])
def test_short_jobs_are_no_more_tasks_than_they_must_be_at_any_limit(
    slurm: Slurm, sandbox: Sandbox, limit: list[str]
) -> None:
    sandbox.rule("facts", jobs=48, name="fuse", resources=BUNDLE)
    sandbox.rule("facts", jobs=48, name="evaluate", resources=BUNDLE, input="fuse/{i}")
    (sandbox.folder / "most").write_text("0")
    count = 'n=$("$real" -h -r | wc -l); test "$n" -gt "$(cat most)" && echo "$n" > most'
    sandbox.wrap("squeue", count)
    options = ["--resources", "my_own=500", *limit, "--submitit-bundle-wait", "5000"]
    code, output = sandbox.run(*options, "--quiet", "all")
    assert code == 0, output
    sizes = [len(task) for batch in sandbox.submitted() for task in batch["jobs"]]
    assert sum(sizes) == 96 and len(sizes) <= 1.1 * 96 / 8, sizes
    assert 1 <= int((sandbox.folder / "most").read_text()) <= 3


def test_a_bundle_goes_as_it_is_when_it_has_waited_for_long(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("facts", jobs=2, resources="runtime=5, mem_mb=100, bundle=8", input="fed/{i}")
    sandbox.add("\nlocalrules: now, late\nrule now:\n    output: 'fed/0'\n    shell: 'touch {output}'\n")
    wait = "until test -e go; do sleep 0.1; done; touch {output}"
    sandbox.add(f"\nrule late:\n    output: 'fed/1'\n    shell: '{wait}'\n")
    running = sandbox.start("--submitit-bundle-wait", "1")
    wait_for((sandbox.folder / "facts/0").exists, "the job that came first", by=running, state=slurm.jobs)
    sandbox.release()
    code, output = running.finish()
    assert code == 0 and [len(batch["jobs"][0]) for batch in sandbox.submitted()] == [1, 1], output
    assert output.count("jobs of facts wait for others, 1 s at most, to share a SLURM job by 8") == 1, output


def test_what_waits_for_its_bundle_is_in_the_line_about_the_queue(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("facts", jobs=2, resources="runtime=5, mem_mb=100, bundle=8", input="fed/{i}")
    sandbox.add("\nlocalrules: now, late\nrule now:\n    output: 'fed/0'\n    shell: 'touch {output}'\n")
    wait = "until test -e go; do sleep 0.1; done; touch {output}"
    sandbox.add(f"\nrule late:\n    output: 'fed/1'\n    shell: '{wait}'\n")
    running = sandbox.start("--submitit-bundle-wait", "5000", "--submitit-report", "1")
    told = lambda: "in the queue: 1 waiting for their bundles to fill" in running.output  # noqa: E731
    wait_for(told, "a word", by=running, state=slurm.jobs)
    sandbox.release()
    code, output = running.finish()
    assert code == 0 and [len(batch["jobs"][0]) for batch in sandbox.submitted()] == [2], output


def test_a_main_process_that_was_killed_leaves_bundles_whole(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.rule("count", jobs=6, resources="runtime=5, mem_mb=100, bundle=2", steps=3, until="go")
    running = sandbox.start("--jobs", "1")
    begun = lambda: any(sandbox.starts(f"count/{i}") for i in range(6))  # noqa: E731
    wait_for(begun, "the first job", by=running, state=slurm.jobs)
    running.end()
    sandbox.release()
    code, output = sandbox.run("--jobs", "1")
    assert code == 0 and output.count("was submitted before") == 2, output
    assert [sandbox.starts(f"count/{i}") for i in range(6)] == [[0]] * 6


def test_without_keep_going_nothing_begins_after_a_failure(slurm: Slurm, sandbox: Sandbox) -> None:
    sandbox.options.remove("--keep-going")
    sandbox.rule("facts", jobs=5)
    first = "resources: runtime=5, mem_mb=500\n    priority: 1\n    shell: 'false'\n"
    sandbox.add(f"\nrule first:\n    output: 'first.txt'\n    {first}", "first.txt")
    code, output = sandbox.run("--jobs", "1")
    assert code == 1 and "a job has failed; 5 others were not submitted" in output, output
    assert len(sandbox.submitted()) == 1, output
