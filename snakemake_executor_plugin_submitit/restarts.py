"""Inside a job that SLURM asks to stop: why it does so, and whether the job may start again.

submitit would take a time limit that was lowered for a preemption, which has no bound, and every preemption of a job of
ten minutes for its time limit. So SLURM is asked; where it does not answer, submitit's rule decides.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from submitit.core.job_environment import SignalHandler
from submitit.core.utils import UncompletedJobError

from .environment import environment
from .launch import DELAY

SECONDS = 20  # that SLURM may take to answer
LATE = 90  # seconds: SLURM looks for limits every 30, and may warn of one up to 60 early
PATIENCE = 60  # attempts to have a job requeued, a second apart


@dataclass(frozen=True)
class Allocation:
    """What SLURM says of the job that this process runs in."""

    left: float  # seconds to its time limit; infinite without one
    limit: float  # minutes
    preempted: bool
    requeues: bool  # whether it may start again

    def is_at_limit(self, delay: float) -> bool:
        """Whether SLURM stops it for its time limit, of which it warns so many seconds before."""
        return not self.preempted and self.left <= delay + LATE


def read(shown: str) -> Allocation | None:
    """The allocation as `scontrol show job` describes it; None if that cannot be read."""
    found = dict(re.findall(r"(\w+)=(\S+)", shown))
    try:
        limit, ran = _seconds(found["TimeLimit"]), _seconds(found["RunTime"])
    except (KeyError, ValueError):
        return None
    preempted, start = found.get("PreemptTime", "None"), found.get("StartTime", "")
    is_preempted = preempted[:1].isdigit() and preempted >= start  # an earlier start's does not count
    return Allocation(limit - ran, limit / 60, is_preempted, found.get("Requeue") != "0")


def ask_slurm() -> Allocation | None:
    """The allocation of this process; None outside SLURM, or where SLURM does not answer."""
    identifier = os.environ.get("SLURM_JOB_ID")
    if not identifier or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return None
    command = ["scontrol", "show", "job", "--oneliner", identifier]
    try:
        shown = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment()
        ).stdout
    except (subprocess.TimeoutExpired, OSError):
        return None
    return read(shown)


class Restarts(SignalHandler):
    """submitit's handler of a request to stop; it has the job requeued and ends the process.

    Raises UncompletedJobError with the reason where the job is not to start again.
    """

    _allocation: Allocation | None = None

    def has_timed_out(self) -> bool:
        """Whether the job stops for its time limit."""
        if self._allocation is None:
            return super().has_timed_out()
        return self._allocation.is_at_limit(float(os.environ.get(DELAY, 0)))

    def requeue(self) -> None:
        """Starts the job again, by and by where SLURM does not answer."""
        self._allocation = ask_slurm()
        self._require_restart()
        for _ in range(PATIENCE):
            try:
                return self.checkpoint_and_try_requeue(signal.SIGUSR2)
            except subprocess.CalledProcessError:
                time.sleep(1)
        self.checkpoint_and_try_requeue(signal.SIGUSR2)

    def _require_restart(self) -> None:
        minutes = self._allocation.limit if self._allocation else self._delayed._timeout_min
        is_timeout = self.has_timed_out()
        if is_timeout and self._delayed._timeout_countdown < 1:
            raise UncompletedJobError(
                f"it reached its time limit of {minutes:.0f} minutes once more often than submitit-max-timeouts "
                "allows; raise the runtime of its rule"
            )
        if self._allocation and not self._allocation.requeues:
            why = f"its time limit of {minutes:.0f} minutes is near" if is_timeout else "it is preempted"
            raise UncompletedJobError(f"SLURM asked it to stop ({why}), and it was submitted with --no-requeue")


def listen(stop: Callable[[], Any]) -> Restarts:
    """Takes the place of submitit's handler; on a request to stop, `stop` is called, and is to call `requeue`."""
    theirs: Any = signal.getsignal(signal.SIGUSR2)
    handler = Restarts(theirs.__self__.env, theirs.__self__._job_paths, theirs.__self__._delayed)

    def interrupt(number: int, frame: FrameType | None) -> None:
        stop()

    signal.signal(signal.SIGUSR2, interrupt)
    return handler


def _seconds(text: str) -> float:
    """Of "1-02:03:04", "02:03:04" or "UNLIMITED". Raises ValueError."""
    if text == "UNLIMITED":
        return float("inf")
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
