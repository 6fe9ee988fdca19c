"""How jobs end on SLURM, read from its own words: causes, time limits and preemptions, nodes that launch nothing."""

from pathlib import Path
from typing import Any

import pytest

from snakemake_executor_plugin_submitit.causes import causes, read
from snakemake_executor_plugin_submitit.restarts import Allocation
from snakemake_executor_plugin_submitit.restarts import read as read_job
from snakemake_executor_plugin_submitit.revival import excluded, fields

OVER = "slurmstepd: error: StepId=139.0 exceeded memory limit (301314048 > 262144000), being killed"
OOM = (
    "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=28.0. Some of your processes may have been killed by "
    "the cgroup out-of-memory handler."
)
OLD_OOM = "slurmstepd-n7: error: Detected 1 oom-kill event(s) in step 28.0 cgroup."
LIMIT = "slurmstepd: error: *** STEP 31.0 ON vm CANCELLED AT 2026-11-28T10:01:02 DUE TO TIME LIMIT ***"
NEW_LIMIT = "[2026-11-28T10:01:02.123] error: *** JOB 31 ON vm CANCELLED AT 2026-11-28T10:01:02 DUE TO TIME LIMIT ***"
NODE = "slurmstepd: error: *** JOB 31 ON vm CANCELLED AT 2026-11-28T10:01:02 DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***"
PREEMPTED = "slurmstepd: error: *** JOB 31 ON vm CANCELLED AT 2026-11-28T10:01:02 DUE TO PREEMPTION ***"
LAUNCH = "srun: error: Task launch for StepId=30.0 failed on node vm: Slurmd could not execve job"
EXECVE = "slurmstepd: error: execve(): sh: No such file or directory"


@pytest.mark.parametrize(
    ("lines", "resources", "advice"),
    [
        ([OVER], {"mem_mb": 250}, "it used 287 MB and had 250 MB; raise mem_mb (now 250)"),
        ([OOM], {"mem_mb": 250}, "raise mem_mb (now 250)"),
        ([OLD_OOM], {"mem_mb_per_cpu": 9, "mem_mb": 250}, "raise mem_mb_per_cpu (now 9)"),
        (["srun: error: vm: task 0: Out Of Memory"], {}, "raise mem_mb"),
        ([LIMIT], {"runtime": 5}, "raise runtime (now 5), in minutes"),
        ([NEW_LIMIT], {}, "raise runtime, in minutes"),
        ([NODE], {}, "its node failed: run it again, and exclude the node if it fails there again"),
        ([LAUNCH], {}, "SLURM could not start it there: look at submitit-setup, submitit-python and the node"),
        ([EXECVE], {}, "SLURM could not start it there: look at submitit-setup, submitit-python and the node"),
        (["error: submitit-setup: module load x ended with exit code 1"], {}, ""),
        (["srun: error: vm: task 0: Killed"], {}, ""),
    ],
)
def test_slurms_own_line_is_shown_with_what_to_raise(lines: list[str], resources: dict[str, Any], advice: str) -> None:
    noise = ["step 5, loss 0.1", "ValueError: error in a stage", "srun: error: vm: task 0: Exited with exit code 1"]
    assert read([*noise, *lines, *lines], resources) == lines + [advice] * bool(advice)


@pytest.mark.parametrize("line", [PREEMPTED, "srun: Force Terminated StepId=3.0", "a line of a stage", ""])
def test_what_ends_no_job_is_no_cause(line: str) -> None:
    assert read([line], {}) == []


def test_causes_are_bounded_and_files_may_be_absent_long_or_binary(tmp_path: Path) -> None:
    err, out = tmp_path / "1.err", tmp_path / "1.out"
    many = b"".join(b"srun: error: %d %s\n" % (number, b"x" * 500) for number in range(3000))
    err.write_bytes(many + b"\0\xff\n" + OOM.encode())
    found = causes([err, out], {"mem_mb": 7})
    assert len(found) == 6 and all(len(line) <= 300 for line in found) and found[-1] == "raise mem_mb (now 7)"
    assert causes([out]) == []


SHOWN = (
    "JobId=31 JobName=count.1 UserId=root(0) JobState=RUNNING Reason=None Dependency=(null) Requeue={requeue} "
    "Restarts=0 RunTime={ran} TimeLimit={limit} TimeMin=N/A StartTime=2026-11-28T10:00:00 "
    "PreemptEligibleTime=2026-11-28T10:00:00 PreemptTime={preempted} SuspendTime=None Partition=low NodeList=vm"
)


@pytest.mark.parametrize(
    ("ran", "limit", "preempted", "is_at_limit"),
    [
        ("00:58:30", "01:00:00", "None", True),
        ("00:10:00", "00:12:00", "None", True),  # lowered by scontrol: it was an hour
        ("00:10:00", "01:00:00", "None", False),
        ("00:01:00", "00:05:00", "None", False),  # a short job that is preempted
        ("00:59:00", "01:00:00", "2026-11-28T10:59:00", False),
        ("00:59:00", "01:00:00", "2026-11-27T10:59:00", True),  # that was its start before
        ("5-00:00:00", "UNLIMITED", "None", False),
        ("1-23:58:59", "2-00:00:00", "None", True),
    ],
)
def test_slurm_says_whether_a_job_stops_for_its_time_limit(
    ran: str, limit: str, preempted: str, is_at_limit: bool
) -> None:
    job = read_job(SHOWN.format(ran=ran, limit=limit, preempted=preempted, requeue=1))
    assert job is not None and job.is_at_limit(delay=120) is is_at_limit and job.requeues


def test_what_slurm_shows_of_a_job_may_be_less_than_expected() -> None:
    assert read_job("slurm_load_jobs error: Unable to contact slurm controller") is None
    assert read_job(SHOWN.format(ran="INVALID", limit="00:05:00", preempted="None", requeue=1)) is None
    job = read_job(SHOWN.format(ran="00:01:00", limit="00:05:00", preempted="None", requeue=0))
    assert job == Allocation(left=240, limit=5, preempted=False, requeues=False)


HELD = (
    "JobId=2 JobName=two JobState=PENDING Reason=launch_failed_requeued_held Partition=all Restarts=1 "
    "LastSchedEval=2026-11-28T09:57:07 ReqNodeList={required} ExcNodeList={before} NodeList="
)


@pytest.mark.parametrize(
    ("required", "before", "listed", "expected"),
    [
        ("(null)", "(null)", "bad|2026-11-28T09:57:07\nvm|Unknown", ["bad"]),
        ("(null)", "old[1-2]", "bad|2026-11-28T09:57:09\nvm|Unknown", ["old[1-2]", "bad"]),
        ("(null)", "(null)", "bad|2026-11-20T09:00:00\nvm|Unknown", []),  # has been out of service for long
        ("(null)", "(null)", "bad|2026-11-28T09:57:07", []),  # no other is left
        ("bad", "(null)", "bad|2026-11-28T09:57:07\nvm|Unknown", []),  # the user wants this one
        ("(null)", "(null)", "", []),  # no answer
    ],
)
def test_the_node_that_failed_is_avoided_where_another_is_left(
    required: str, before: str, listed: str, expected: list[str]
) -> None:
    assert excluded(fields(HELD.format(required=required, before=before)), listed) == expected
