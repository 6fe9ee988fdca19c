"""The two places where submitit runs jobs: SLURM, and processes of this machine."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import psutil
import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from . import revival, slurm
from .environment import require_one_cluster
from .launch import Launch, Sbatch, here
from .runner import Stages
from .slurm import State

RETRY = 2.0  # seconds between two attempts to reach SLURM


class Full(ValueError):
    """The scheduler has as many jobs as it may have, in its own words."""


class Backend(Protocol):
    """What the executor needs of a place that runs jobs."""

    largest_array: int
    longest_poll: float  # seconds
    bundles: bool  # whether jobs that are short share one process
    canceller: str  # the program that cancels a job by its id
    is_slow: bool  # whether a job may be over, or its files there, long before that is seen
    tell: Callable[[str], None]  # what is told, in its words, that the scheduler does not answer; of an answer, ""

    def room(self, gpus: int) -> bool:
        """Whether a job that asks for so many GPUs can be submitted now; ValueError if it never can."""
        ...

    def take_up(self, identifier: str) -> None:
        """A job that a process before this one submitted is this one's now."""
        ...

    def submit(self, folder: Path, name: str, functions: Sequence[Callable[[], Any]], wanted: dict[str, Any]) -> str:
        """The id of one job, or of the array of several; ValueError in the scheduler's own words if it refuses.

        Full if it refuses for now.
        """
        ...

    def states(self, ids: Iterable[str]) -> Mapping[str, State]:
        """The states of those jobs that are known. Raises NoAnswer."""
        ...

    def named(self, name: str) -> Mapping[str, State]:
        """The states of what was submitted under that name, or those with commas between. Raises NoAnswer."""
        ...

    def in_queue(self) -> int:
        """How many jobs this user has, of any name. Raises NoAnswer."""
        ...

    def cancel(self, ids: Iterable[str]) -> bool:
        """Cancels jobs that are not over yet; whether that is certain."""
        ...

    def revive(self, identifier: str) -> bool:
        """Lets a job that could not be launched start elsewhere; False if that has happened too often."""
        ...

    def stop(self) -> None:
        """Lets no `submit` wait any longer; it raises ValueError."""
        ...


class Slurm:
    """SLURM by sbatch, squeue and scancel.

    OSError where they are not there, ValueError where the environment asks for other clusters.
    """

    bundles, longest_poll, is_slow, canceller = True, 60.0, True, "scancel"

    def __init__(self, signal_delay: int, max_timeouts: int, launch: Launch) -> None:
        slurm.require_programs()
        require_one_cluster()
        self.tell: Callable[[str], None] = lambda words: None
        self._signal_delay, self._max_timeouts, self._launch = signal_delay, max_timeouts, launch
        self._revived: Counter[str] = Counter()  # by job id
        self._stopped = Event()
        self.largest_array = slurm.largest_array()

    def room(self, gpus: int) -> bool:
        """Always: SLURM lets jobs wait."""
        return True

    def take_up(self, identifier: str) -> None:
        """Nothing: SLURM knows its jobs."""

    def submit(self, folder: Path, name: str, functions: Sequence[Callable[[], Any]], wanted: dict[str, Any]) -> str:
        """Waits while SLURM cannot be reached; what an attempt that failed did submit is cancelled before the next."""
        executor = Sbatch(folder, self._max_timeouts, self._launch)
        executor.set(wanted, name, self._signal_delay, isinstance(functions[0], Stages))
        while True:
            try:
                identifier = executor.send(functions)
                self.tell("")
                return identifier
            except (FailedJobError, FailedSubmissionError) as error:
                words = slurm.refusal(error)
                if not slurm.NOT_NOW.search(str(error)):
                    raise (Full if slurm.is_full(words) else ValueError)(words) from error
            self.tell(words)
            while not cancel_named(self, name):
                self._wait()
            self._wait()

    states = staticmethod(slurm.states)
    named = staticmethod(slurm.named)
    in_queue = staticmethod(slurm.in_queue)
    cancel = staticmethod(slurm.cancel)

    def revive(self, identifier: str) -> bool:
        """Excludes the nodes where the job could not be launched, and releases it; a few times."""
        if self._revived[identifier] >= revival.TIMES:
            return False
        self._revived[identifier] += revival.revive(identifier)  # else it was released meanwhile, or nobody answers
        return True

    def stop(self) -> None:
        """Lets no attempt to submit go on."""
        self._stopped.set()

    def _wait(self) -> None:
        if self._stopped.wait(RETRY):
            raise ValueError("Snakemake is ending")


class Local:
    """Processes of this machine, each with GPUs of its own."""

    bundles, largest_array, is_slow, canceller = False, 1, False, "kill"
    longest_poll = 1.0  # looking at processes costs nothing

    def __init__(self, signal_delay: int, max_timeouts: int, launch: Launch, devices: str) -> None:
        self._signal_delay, self._max_timeouts, self._launch = signal_delay, max_timeouts, launch
        self.devices = [int(one) for one in devices.split(",") if one.strip()] if devices else visible_devices()
        self._taken: dict[str, list[int]] = {}  # by job id
        self.tell: Callable[[str], None] = lambda words: None

    def room(self, gpus: int) -> bool:
        """Whether so many GPUs are free. ValueError if there are not so many at all."""
        if gpus > len(self.devices):
            raise ValueError(f"the job asks for {gpus} GPUs, and this machine has {len(self.devices)}")
        return gpus <= len(self._free())

    def submit(self, folder: Path, name: str, functions: Sequence[Callable[[], Any]], wanted: dict[str, Any]) -> str:
        """Starts a process with the first free GPUs; no GPU is visible to a job that asks for none."""
        (function,) = functions
        devices = self._free()[: int(wanted.get("gpus_per_node", 0))]
        python = here(self._launch, isinstance(function, Stages))
        executor = submitit.LocalExecutor(folder=folder, max_num_timeout=self._max_timeouts, python=python)
        executor.update_parameters(
            timeout_min=wanted["timeout_min"], gpus_per_node=len(devices), visible_gpus=devices,
            signal_delay_s=self._signal_delay,
        )  # fmt: skip
        job = executor.submit(function)
        self._taken[job.job_id] = devices
        return job.job_id

    @staticmethod
    def states(ids: Iterable[str]) -> Mapping[str, State]:
        """RUNNING or FAILED: a process that is there no more, or is another by now, has failed or finished."""
        return {one: State("RUNNING" if _runs(one) else "FAILED", "") for one in ids}

    def revive(self, identifier: str) -> bool:
        """Never: a process is launched or not."""
        return False

    def stop(self) -> None:
        """Nothing: no submission waits."""

    def cancel(self, ids: Iterable[str]) -> bool:
        """Ends the processes and all that they started."""
        processes = [process for one in ids if _runs(one) for process in _family(int(one))]
        for process in processes:
            process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=3)
        for process in alive:
            process.kill()
        return True

    @staticmethod
    def named(name: str) -> Mapping[str, State]:
        """The processes that were started from a folder of that name."""
        processes = psutil.process_iter(["cmdline"])
        words = [f"/{one}" for one in name.split(",")]
        found = (one for one in processes if any(w in said for said in one.info["cmdline"] or () for w in words))
        return {str(process.pid): State("RUNNING", "") for process in found}

    def in_queue(self) -> int:
        """None: a process is started, or it is not."""
        return 0

    def take_up(self, identifier: str) -> None:
        """Counts the GPUs of a job that a process before this one started."""
        try:
            visible = psutil.Process(int(identifier)).environ().get("CUDA_VISIBLE_DEVICES", "")
        except psutil.Error:
            return
        self._taken[identifier] = [int(one) for one in visible.split(",") if one.isdigit()]

    def _free(self) -> list[int]:
        self._taken = {one: devices for one, devices in self._taken.items() if _runs(one)}
        taken = {device for devices in self._taken.values() for device in devices}
        return [device for device in self.devices if device not in taken]


def cancel_named(backend: Backend, name: str) -> bool:
    """Cancels what was submitted under that name, if anything was; whether that is certain by now."""
    try:
        ids = [one for one, state in backend.named(name).items() if not state.end]
    except slurm.NoAnswer:
        return False
    return backend.cancel(ids)


def visible_devices() -> list[int]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [int(one) for one in visible.split(",") if one.strip().isdigit()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return list(range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines())))


def _runs(identifier: str) -> bool:
    """Whether the process of a local job is still that job."""
    try:
        process = psutil.Process(int(identifier))
        return process.status() != psutil.STATUS_ZOMBIE and "submitit.local._local" in process.cmdline()
    except psutil.Error:
        return False


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []
