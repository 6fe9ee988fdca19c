"""The job processes of one run, forked from a server that has imported the heavy modules once."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import ForkingPickler
from threading import Condition
from types import MappingProxyType
from typing import Any

import psutil

from fusion.job import Job

from . import worker

GRACE = 3.0  # seconds between the interrupt, on which a stage removes its temporary files, and the kill


class Processes:
    """Starts, awaits and kills job processes; its methods may be called from several threads."""

    def __init__(self, preload: Sequence[str]) -> None:
        self.stopped = False
        self._preload = list(preload)
        self._running: set[ForkServerProcess] = set()
        # guards the processes' state: multiprocessing loses an exit code when two threads poll one process
        self._changed = Condition()
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload([worker.__name__, *preload])
        _hide_main_script()

    def check_imports(self) -> None:
        """Returns when the server is warm; ValueError if a module to preload cannot be imported."""
        reader, writer = self._context.Pipe(duplex=False)
        with reader:
            self._finish(self._start(worker.check_imports, writer, self._preload))
            errors = reader.recv() if reader.poll() else "the process that imported them died"
        if errors:
            raise ValueError(f"cannot preload {errors}; see forkserver-preload in the profile")

    def run(
        self,
        job: Job,
        measured: Callable[[int], AbstractContextManager[Any]] = nullcontext,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[int, str]:
        """The exit code of the job's own process, minus the signal's number if a signal ended it, and the exception.

        The job begins inside the context `measured(pid)` and ends before it does; its environment has these
        variables besides.
        """
        message = ForkingPickler.dumps((job, dict(environment)))
        channel, other_end = self._context.Pipe()
        process = self._start(worker.serve, other_end)
        error = ""
        try:
            with measured(process.pid or 0), channel:
                with suppress(ConnectionError):  # killed this early: its exit code says so
                    channel.send_bytes(message)
                wait([process.sentinel])
                with suppress(EOFError, ConnectionError):
                    error = channel.recv()
        finally:
            code = self._finish(process)
        return code, error

    def stop(self) -> None:
        """Ends all running jobs: an interrupt first and, after GRACE seconds, a kill. No other can start."""
        with self._changed:
            self.stopped = True
            for number in (signal.SIGINT, signal.SIGKILL):
                for process in self._running:
                    _signal_group(process.pid, number)
                self._changed.wait_for(lambda: not self._running, timeout=GRACE)

    def _start(self, target: Callable[..., None], channel: Connection, *args: Any) -> ForkServerProcess:
        """A started process that holds the only copy of `channel`, its end of a pipe."""
        process = self._context.Process(target=target, args=(channel, *args))
        with self._changed, channel:
            if self.stopped:
                raise KeyboardInterrupt
            try:
                process.start()
            except (EOFError, ConnectionError) as error:
                raise ValueError(
                    f"the fork server died while importing {', '.join(self._preload) or 'nothing'}; "
                    "its own message is above; see forkserver-preload in the profile"
                ) from error
            self._running.add(process)
        return process

    def _finish(self, process: ForkServerProcess) -> int:
        """The exit code of the process, once it has ended; ends what it left behind."""
        wait([process.sentinel])
        with self._changed:
            process.join()
            code, pid = process.exitcode, process.pid
            process.close()
            self._running.discard(process)
            self._changed.notify_all()
        _signal_group(pid, signal.SIGKILL)
        assert code is not None
        return code


def end_children() -> None:
    """Lets all that this process started, and what that started, end."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended, or is another user's
            process.terminate()


def _signal_group(pid: int | None, number: int) -> None:
    """Signals a job's process and all that it started; nothing if they have ended."""
    assert pid
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def _hide_main_script() -> None:
    """Lets workers skip the script `snakemake`, which multiprocessing would import anew in each of them.

    It does skip `python -m snakemake`, which is the same program: so we say that this is how we were started.
    """
    main = sys.modules["__main__"]
    if main.__spec__ is None and os.path.basename(getattr(main, "__file__", None) or "") == "snakemake":
        main.__spec__ = find_spec("snakemake.__main__")
