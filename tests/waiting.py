"""Waits for states, so that no test depends on how fast the machine is.

A wait ends when the state is reached, or when what could reach it has ended. The one limit is a backstop for what
hangs.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

BACKSTOP = 1800  # seconds, far more than any wait takes on any machine
LAST = 5000  # characters of an output that an error shows


class Running(subprocess.Popen[bytes]):
    """A process at the head of a session of its own, whose output, stdout and stderr in one, goes to a file."""

    def __init__(self, command: Sequence[str | Path], **options: Any) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is open as long as this object lives
        pipes = {"stdin": subprocess.DEVNULL, "stdout": self._file, "stderr": subprocess.STDOUT}
        super().__init__(command, start_new_session=True, **pipes, **options)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        descriptor = self._file.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def end(self) -> None:
        """Kills it with all of its session's group, if it runs."""
        with suppress(ProcessLookupError):
            if self.poll() is None:
                os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def finish(self) -> tuple[int, str]:
        """Its exit code and its output, once it has ended."""
        try:
            wait_for(lambda: self.poll() is not None, f"the end of {self.args}", by=self)
        except BaseException:
            self.end()
            raise
        return self.returncode, self.output


def run(command: Sequence[str | Path], **options: Any) -> "subprocess.CompletedProcess[str]":
    """What a process, once it has ended, returned and printed, stdout and stderr in one."""
    code, output = Running(command, **options).finish()
    return subprocess.CompletedProcess(list(command), code, output)


def wait_for(
    condition: Callable[[], object],
    what: object = "a state",
    *,
    by: "subprocess.Popen[Any] | None" = None,
    over: Callable[[], bool] = lambda: False,
    state: Callable[[], object] = lambda: "",
) -> None:
    """Returns once the condition holds.

    AssertionError, with what was waited for, the state and the last output, if the process `by`, which is to reach it,
    has ended or it is `over` for another reason. Where it is neither after BACKSTOP, `by` is killed.
    """
    end = time.monotonic() + BACKSTOP
    while not condition():
        ended = (by is not None and by.poll() is not None) or over()
        if condition():  # reached just before the end
            return
        if not ended and time.monotonic() < end:
            time.sleep(0.05)
            continue
        why = "what could reach it has ended" if ended else f"not reached in {BACKSTOP} s"
        words = f"waited for {what}: {why}; {state()}"
        if isinstance(by, Running):
            by.end()
            words += f"\nexit code {by.returncode}, last output:\n{by.output[-LAST:]}"
        raise AssertionError(words)


def names(processes: list[psutil.Process]) -> set[str]:
    """The names of those that still run."""
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found.add(process.name())
    return found
