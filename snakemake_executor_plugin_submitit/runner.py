"""What runs in the allocation: one or several jobs in one process. Imports neither Snakemake nor torch.

submitit pickles these classes by reference, calls them, and before the job is requeued their `checkpoint`.
"""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submitit.core.utils import UncompletedJobError
from submitit.helpers import Checkpointable, DelayedSubmission

from fusion.interruption import Interrupted, ask
from fusion.job import QUEUED, Job, run
from snakemake_executor_plugin_forkserver.worker import limit_threads, redirect

from . import outcome, restarts
from .gpus import GIVEN

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # the network is not here
GRACE = (20, 5)  # seconds after SIGTERM, and after SIGKILL
PYTHON = "FUSION_PYTHON"  # of the environment: the Python of a job's own Snakemake


@dataclass
class Stages(Checkpointable):
    """Stages of the suite, run one after another in this process; each leaves its outcome in a file of its own.

    outcomes: the files, one a job. Those that are there when a requeued job starts again are not run again.
    """

    jobs: Sequence[Job]
    outcomes: Sequence[str]
    folder: str
    path: Sequence[str]
    submitted: float  # seconds since the epoch
    _restarts: Any = field(default=None, repr=False)

    def __call__(self) -> None:
        os.chdir(self.folder)
        sys.path[:0] = [place for place in self.path if place not in sys.path]
        os.environ.update(OFFLINE)
        self._restarts = restarts.listen(self._stop)
        streams = os.dup(1), os.dup(2)
        for job, file in zip(self.jobs, self.outcomes, strict=True):
            if not Path(file).exists():
                goes_on = self._run(job, Path(file))
                os.dup2(streams[0], 1)
                os.dup2(streams[1], 2)
                if not goes_on:
                    sys.exit(1)  # and those that follow are submitted again

    def checkpoint(self) -> DelayedSubmission:
        """What SLURM is to start again: the same."""
        return DelayedSubmission(Stages(self.jobs, self.outcomes, self.folder, self.path, self.submitted))

    def _run(self, job: Job, file: Path) -> bool:
        """Runs one job; whether the next can follow: SLURM may be about to end this process for good."""
        began, error, goes_on = time.time(), "", True
        start = outcome.started(file)
        # the time before an interruption is no time in the queue
        first = start.stat().st_mtime if start.exists() else began
        start.write_text(socket.gethostname(), encoding="utf-8")
        os.utime(start, (first, first))
        os.environ[QUEUED] = f"{max(0.0, first - self.submitted):.1f}"
        limit_threads(_cores(job))
        try:
            redirect(job.log, append=_restarts() > 0)
            print(describe(job), flush=True)
            try:
                run(job)
            except Interrupted:
                self._requeue()
            sys.stdout.flush()
        except Exception as failure:
            goes_on = not isinstance(failure, UncompletedJobError)
            error = f"{type(failure).__name__}: {failure}" if goes_on else str(failure)
            with suppress(OSError):  # the file system may be full
                traceback.print_exc()
                sys.stdout.flush()
        leave(file, error, began, resource.getrusage(resource.RUSAGE_SELF))
        return goes_on

    def _stop(self) -> None:
        """Lets a stage that can keep what it has done do so before the job is requeued."""
        if not ask():
            self._requeue()

    def _requeue(self) -> None:
        with suppress(OSError):
            print("» interrupted; to be started again", flush=True)
        self._restarts.requeue()


@dataclass
class Command(Checkpointable):
    """A Snakemake of its own, for groups and for rules without a stage."""

    command: str
    folder: str
    outcome: str
    _process: Any = field(default=None, repr=False)

    def __call__(self) -> None:
        if Path(self.outcome).exists():
            return
        began = time.time()
        outcome.started(Path(self.outcome)).write_text(socket.gethostname(), encoding="utf-8")
        handler = restarts.listen(lambda: handler.requeue())
        environment = {**os.environ, PYTHON: sys.executable, GIVEN: "1"}
        options: dict[str, Any] = {"cwd": self.folder, "start_new_session": True, "env": environment}
        self._process = subprocess.Popen(self.command, shell=True, **options)
        try:
            code = self._process.wait()
            error = f"its Snakemake ended with exit code {code}" if code else ""
        except UncompletedJobError as failure:
            self._end()
            error = str(failure)
        leave(self.outcome, error, began, resource.getrusage(resource.RUSAGE_CHILDREN))

    def checkpoint(self) -> DelayedSubmission:
        """The same command, after what runs of it has been ended."""
        self._end()
        return DelayedSubmission(Command(self.command, self.folder, self.outcome))

    def _end(self) -> None:
        if self._process:
            for number, seconds in zip((signal.SIGTERM, signal.SIGKILL), GRACE, strict=True):
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                if _ends(self._process.pid, seconds):
                    break


def leave(path: str | Path, error: str, began: float, usage: resource.struct_rusage) -> None:
    """Writes how a job ended: the error, empty where there was none, and what it took."""
    spent = usage.ru_utime + usage.ru_stime
    ended = outcome.Outcome(error, socket.gethostname(), time.time() - began, usage.ru_maxrss / 1024, spent)
    outcome.write(path, ended)


def _ends(pid: int, seconds: float) -> bool:
    """Whether a child ends in that time; Popen.wait, which the signal's handler interrupted, holds its own lock."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return True
        except ChildProcessError:
            return True
        time.sleep(0.1)
    return False


def describe(job: Job) -> str:
    """Where a job runs and what it was given: the first line of its log."""
    env = os.environ
    identifier = env.get("SLURM_ARRAY_JOB_ID", env.get("SLURM_JOB_ID", ""))
    if "SLURM_ARRAY_TASK_ID" in env:
        identifier += f"_{env['SLURM_ARRAY_TASK_ID']}"
    where = f"SLURM job {identifier}" if identifier else f"process {os.getpid()}"
    memory = env.get("SLURM_MEM_PER_NODE")
    gpus = env.get("CUDA_VISIBLE_DEVICES", "") if job.gpus else ""
    parts = [
        f"host {socket.gethostname()}",
        where,
        f"start {_restarts() + 1}",
        f"{_cores(job)} cores",
        f"{memory} MB" if memory else "",
        f"GPU {gpus}" if gpus else "no GPU",
        f"waited {float(env.get(QUEUED, 0)):.0f} s",
    ]
    return ", ".join(part for part in parts if part)


def _cores(job: Job) -> int:
    """The cores that the scheduler gave, or else those that the rule asks for."""
    return int(os.environ.get("SLURM_CPUS_PER_TASK", job.threads))


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))
