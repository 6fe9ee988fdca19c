"""Jobs as processes of this machine."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import submitit

from .launch import Launch, here
from .runner import Stages
from .slurm import State


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
        alive = [process for one in ids if _runs(one) for process in _family(int(one))]
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in alive:
                with suppress(psutil.Error):  # it may have ended by itself
                    end(process)
            _, alive = psutil.wait_procs(alive, timeout=3)
        return True

    def cancel_named(self, name: str) -> bool:
        """Ends what was started under that name."""
        return self.cancel(self.named(name))

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
