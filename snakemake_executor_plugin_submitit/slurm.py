"""What the executor asks SLURM beside submitting: queries of the queue, cancelling, limits. It needs no sacct."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .environment import environment

TIMEOUT = 20  # seconds that a call of SLURM may take
PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "srun")
ENDED = {  # states of squeue that are the end of a job; it forgets them after MinJobAge
    "BOOT_FAIL": "its node did not boot",
    "CANCELLED": "it was cancelled",
    "COMPLETED": "it ended without a result",
    "DEADLINE": "its deadline passed",
    "FAILED": "its process failed or was killed",
    "NODE_FAIL": "its node failed",
    "LAUNCH_FAILED": "its node could not launch it",
    "OUT_OF_MEMORY": "it ran out of memory: more mem_mb is needed",
    "PREEMPTED": "it was preempted, and is not started again",  # else it is pending before it is given up
    "RECONFIG_FAIL": "its node could not be reconfigured",
    "REVOKED": "it was revoked",
    "TIMEOUT": "its time limit was reached: more runtime is needed",
}
# reasons for which a pending job would wait for ever
HOPELESS = re.compile(
    r"PerJob|Invalid|NotAllowed|BadConstraints|NeverSatisfied|PartitionTimeLimit|JobHoldMaxRequeue|"
    r"launch.failed.requeued.held"
)
NOT_LAUNCHED = re.compile(r"launch.failed.requeued.held")
# what sbatch says where asking again later helps
NOT_NOW = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Connection (refused|reset|timed out)|"
    r"Zero Bytes were transmitted|Unable to establish control|backup controller|in standby mode",
    re.IGNORECASE,
)
# what it says where the user, the account, the QOS or SLURM has as many jobs as it may have
FULL = re.compile(r"SubmitJob|MaxSubmit|MaxJobCount|unable to accept job|temporarily unavailable", re.IGNORECASE)
VAGUE = "job submit limit, user's size and/or time limits"  # all that some versions say, of a limit of any kind


class NoAnswer(Exception):
    """SLURM does not answer; in the words of its program."""


@dataclass(frozen=True)
class State:
    """What squeue says of one job."""

    name: str  # RUNNING, PENDING, ...
    reason: str

    @property
    def end(self) -> str:
        """Why the job is over; empty while it is not."""
        return ENDED.get(self.name, "")

    @property
    def hopeless(self) -> bool:
        """Whether it is pending for a reason that does not pass."""
        return self.name == "PENDING" and bool(HOPELESS.search(self.reason))

    @property
    def not_launched(self) -> bool:
        """Whether it is held because its node could not launch it."""
        return self.name == "PENDING" and bool(NOT_LAUNCHED.search(self.reason))


def states(ids: Iterable[str]) -> Mapping[str, State]:
    """The state of every job that SLURM still knows, by its id (one query). Raises NoAnswer.

    ids: of jobs and of whole arrays, whose tasks are reported one by one.
    """
    parents = sorted({one.partition("_")[0] for one in ids})
    return _listed("--states=all", f"--jobs={','.join(parents)}")


def named(name: str) -> Mapping[str, State]:
    """The states of this user's jobs of that name, by their ids. Raises NoAnswer."""
    return _listed("--states=all", f"--user={os.getuid()}", f"--name={name}")


def in_queue() -> int:
    """How many jobs this user has in the queue, those that are completing too, without our own. Raises NoAnswer."""
    own = {os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")}
    return sum(one.partition("_")[0] not in own for one in _listed(f"--user={os.getuid()}"))


def cancel_named(name: str) -> bool:
    """Cancels this user's jobs of that name, also those that a squeue which is behind does not list yet."""
    try:
        answer = _ask(["scancel", "--quiet", f"--user={os.getuid()}", f"--name={name}"])
    except NoAnswer:
        return False
    return answer.returncode == 0


def _listed(*options: str) -> dict[str, State]:
    answer = _ask(["squeue", "--noheader", "--array", "--format=%i|%T|%r", *options])
    if answer.returncode and "Invalid job id" not in answer.stderr:
        raise NoAnswer(refusal(answer.stderr) or f"squeue ended with exit code {answer.returncode}")
    rows = (line.split("|", 2) for line in answer.stdout.splitlines() if line.count("|") >= 2)
    return {identifier: State(name, reason) for identifier, name, reason in rows}


def cancel(ids: Iterable[str]) -> bool:
    """Cancels jobs, and whether that is certain; those that are over already are no error."""
    ids, certain = sorted(ids), True
    for first in range(0, len(ids), 500):
        try:
            answer = _ask(["scancel", "--quiet", *ids[first : first + 500]])
        except NoAnswer:
            return False
        certain = certain and (answer.returncode == 0 or "Invalid job id" in answer.stderr)
    return certain


def largest_array() -> int:
    """The most tasks of one job array (MaxArraySize), by SLURM's default where it does not say."""
    try:
        answer = _ask(["scontrol", "show", "config"])
    except NoAnswer:
        return 1000
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer.stdout, re.MULTILINE)
    return max(1, int(found[1]) - 1) if found else 1000


def require_programs() -> None:
    """OSError naming the programs of SLURM that are not on the PATH."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise OSError(f"{', '.join(missing)} not found")


def refusal(words: object) -> str:
    """SLURM's own words in what its program, or submitit, says."""
    lines = [line.strip() for line in str(words).splitlines() if "error:" in line]
    return "; ".join(lines) or str(words).strip()


def is_full(words: str) -> bool:
    """Whether sbatch says that there are as many jobs as there may be: that passes when some of them end."""
    return bool(FULL.search(words)) or (VAGUE in words and "Limit" not in words)


def _ask(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """What a program of SLURM says; NoAnswer where it says nothing for long."""
    try:
        options = {"capture_output": True, "text": True, "check": False, "env": environment()}
        return subprocess.run(command, timeout=TIMEOUT, **options)
    except (subprocess.TimeoutExpired, OSError) as error:
        raise NoAnswer(f"{command[0]}: {error}") from error
