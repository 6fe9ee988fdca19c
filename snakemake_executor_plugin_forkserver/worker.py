"""What runs in a job's own process: its log, its threads, its end. Imports neither Snakemake nor torch."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from io import BufferedWriter, TextIOWrapper
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from threading import Thread

from fusion.job import run

from .report import cause

PROGRESS = "» "  # stages begin with this the lines that are for the terminal (fusion.job.progress)
LONGEST = 1000  # characters of such a line
THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def serve(channel: Connection) -> None:
    """Runs the one Job that comes through `channel`, with what its environment has besides.

    An exception goes back through the channel, and ends in the job's log.
    """
    _own_group()
    job, environment = channel.recv()
    os.environ.update(environment)  # before CUDA looks for its GPUs, which nothing preloaded has asked it to
    try:
        limit_threads(job.threads)
        redirect(job.log)
        run(job)
    except Exception as error:
        channel.send(cause(error))
        raise


def check_imports(channel: Connection, modules: Sequence[str]) -> None:
    """Sends the modules' import errors as one text: the fork server ignores them, here they come up again."""
    _own_group()
    errors = []
    for name in modules:
        try:
            import_module(name)
        except ImportError as error:
            errors.append(f"{name} ({type(error).__name__}: {error})")
    channel.send("; ".join(errors))


def redirect(log: str, append: bool = False) -> int:
    """Sends stdout and stderr to the file `log` for good, progress lines to the terminal too.

    Returns the file descriptor of the terminal.
    """
    if not log:
        return 2
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.dup(2)
    # append mode: what subprocesses write to the same file does not overwrite our lines
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if append else os.O_TRUNC), 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout = sys.stderr = _Relay(os.fdopen(1, "wb", closefd=False), terminal)
    return terminal


class _Relay(TextIOWrapper):
    """A text stream into the log that repeats progress lines on the terminal as soon as they are complete.

    Of a line, only the beginning of what follows its last `\\r` is kept: progress bars are lines of megabytes.
    """

    def __init__(self, log: BufferedWriter, terminal: int) -> None:
        super().__init__(log, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._terminal = terminal
        self._line = ""

    def write(self, text: str, /) -> int:
        written = super().write(text)
        *ends, rest = text.split("\n")
        for end in ends:
            line = self._joined(end).rstrip("\r")
            self._line = ""
            if line.startswith(PROGRESS):
                with suppress(BrokenPipeError):  # a terminal that was closed is no reason for a job to fail
                    os.write(self._terminal, f"{line}\n".encode())
        self._line = self._joined(rest)
        return written

    def _joined(self, text: str) -> str:
        """The line so far with more text; a `\\r` at its end overwrites nothing yet."""
        line = self._line + text
        shown = line.rstrip("\r")
        return shown.rpartition("\r")[2][:LONGEST] + "\r" * (len(line) > len(shown))


def limit_threads(threads: int) -> None:
    """Lets numerical libraries use `threads` cores: by environment, and torch directly if it is imported."""
    os.environ.update(dict.fromkeys(THREAD_LIMITS, str(threads)))
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)


def _own_group() -> None:
    """Makes this process the head of a group that is killed as one, at the latest with the main process."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # the parent by kinship is the fork server, so PR_SET_PDEATHSIG is of no use; multiprocessing gives each
    # child a pipe whose write end only the main process holds, and `join` returns when that end is closed
    if parent := parent_process():
        parent.join()
        os.killpg(0, signal.SIGKILL)
