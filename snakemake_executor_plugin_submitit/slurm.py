"""What the executor asks SLURM beside submitting: one query for all jobs, cancelling, limits. It needs no sacct."""

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .environment import environment

TIMEOUT, SHORT = 20, 4  # seconds that a call of SLURM may take, and one on the way out
ENDED = {  # states of squeue that are the end of a job; it forgets them after MinJobAge
    "BOOT_FAIL": "its node did not boot",
    "CANCELLED": "it was cancelled",
    "COMPLETED": "it ended without a result",
    "DEADLINE": "its deadline passed",
    "FAILED": "its process failed or was killed",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "it ran out of memory: more mem_mb is needed",
    "REVOKED": "it was revoked",
    "TIMEOUT": "its time limit was reached: more runtime is needed",
}
# reasons for which a pending job would wait for ever
HOPELESS = re.compile(
    r"PerJob|Invalid|NotAllowed|BadConstraints|NeverSatisfied|PartitionTimeLimit|JobHoldMaxRequeue|"
    r"launch.failed.requeued.held"
)
# what sbatch says where asking again later helps
NOT_NOW = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Connection (refused|reset|timed out)|"
    r"Zero Bytes were transmitted|temporarily|Unable to establish control|backup controller|in standby mode",
    re.IGNORECASE,
)


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


def states(ids: Iterable[str]) -> Mapping[str, State] | None:
    """The state of every job that SLURM still knows, by its id (one query); None where SLURM does not answer.

    ids: of jobs and of whole arrays, whose tasks are reported one by one.
    """
    parents = sorted({one.partition("_")[0] for one in ids})
    command = ["squeue", "--noheader", "--states=all", "--array", "--format=%i|%T|%r", f"--jobs={','.join(parents)}"]
    try:
        answer = _run(command)
    except (subprocess.TimeoutExpired, OSError):
        return None
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return None
    rows = (line.split("|", 2) for line in answer.stdout.splitlines() if line.count("|") >= 2)
    return {identifier: State(name, reason) for identifier, name, reason in rows}


def named(name: str) -> list[str] | None:
    """The ids of this user's jobs of that name; None where SLURM does not answer."""
    try:
        answer = _run(["squeue", "--noheader", "--format=%A", f"--user={os.getuid()}", f"--name={name}"], SHORT)
    except (subprocess.TimeoutExpired, OSError):
        return None
    return None if answer.returncode else sorted(set(answer.stdout.split()))


def cancel(ids: Iterable[str]) -> bool:
    """Cancels jobs, and whether that is certain; those that are over already are no error."""
    ids, certain = sorted(ids), True
    for first in range(0, len(ids), 500):
        try:
            answer = _run(["scancel", "--quiet", *ids[first : first + 500]], SHORT)
        except (subprocess.TimeoutExpired, OSError):
            return False
        certain = certain and (answer.returncode == 0 or "Invalid job id" in answer.stderr)
    return certain


def largest_array() -> int:
    """The most tasks of one job array (MaxArraySize), by SLURM's default where it does not say."""
    try:
        answer = _run(["scontrol", "show", "config"])
    except (subprocess.TimeoutExpired, OSError):
        return 1000
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer.stdout, re.MULTILINE)
    return max(1, int(found[1]) - 1) if found else 1000


def refusal(error: Exception) -> str:
    """SLURM's own words in an error of submitit."""
    lines = [line.strip() for line in str(error).splitlines() if "error:" in line]
    return "; ".join(lines) or str(error).strip()


def _run(command: list[str], seconds: float = TIMEOUT) -> "subprocess.CompletedProcess[str]":
    options = {"capture_output": True, "text": True, "check": False, "env": environment()}
    return subprocess.run(command, timeout=seconds, **options)
