"""What executors say of a job."""

import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TAIL = 15  # lines of a failed job's log to show
WIDTH = 240  # characters of each of them
END = 64 * 1024  # bytes at the end of a log, which are all of it that is read
GROUP = 300  # characters of the names of a group's jobs
CAUSE = 1000  # characters of an exception


def has_stage(job: Any) -> bool:
    """Whether the job is a call of a function of the suite; a group of jobs is none."""
    return not job.is_group() and "stage" in dict(job.rule.params.items())


def describe(job: Any) -> str:
    """The job as a person names it: its rule and its wildcards; of a group, those of its jobs."""
    if job.is_group():
        jobs = ", ".join(sorted(describe(single) for single in job.jobs))
        return f"group {job.groupid} ({shorten(jobs, GROUP)})"
    return call(job.rule.name, job.wildcards)


def call(rule: str, wildcards: Mapping[str, Any]) -> str:
    """The rule and its wildcards."""
    return " ".join([rule, *(f"{name}={value}" for name, value in wildcards.items())])


def failure(name: str, why: str, logs: Sequence[str]) -> str:
    """What failed on this host and why, the last lines of its log, and where the log is."""
    return f"{name} failed on {socket.gethostname()}: {why}\n{tail(logs)}"


def tell(logger: Any, quiet: Iterable[Any] | None, text: str) -> None:
    """Says an error by Snakemake's logger; past it where Snakemake is to be quiet about all."""
    if "all" in {str(kind) for kind in quiet or ()}:
        print(text, file=sys.stderr, flush=True)
    else:
        logger.error(text)


def cause(error: BaseException) -> str:
    """The exception's type and message."""
    return shorten(f"{type(error).__name__}: {error}", CAUSE)


def tail(logs: Sequence[str]) -> str:
    """The last lines of the first of the logs that has any, and its name."""
    for log in logs:
        try:
            if os.path.isfile(log) and os.path.getsize(log):
                lines = "\n".join(f"    {line}" for line in last_lines(log))
                return f"The end of its log {log}:\n{lines}"
        except OSError as error:
            return f"Its log {log} cannot be read now: {error}"
    return f"It left no log; expected one of {', '.join(logs)}" if logs else "It has no log; what it printed is above"


def last_lines(log: str) -> list[str]:
    """The last lines of a log as a terminal would show them, where `\\r` goes back to the beginning of the line."""
    with open(log, "rb") as file:
        start = max(0, os.path.getsize(log) - END)
        file.seek(start)
        text = file.read(END).decode("utf-8", errors="replace")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.removesuffix("\n").split("\n")]
    return [shorten(line, WIDTH) for line in lines[-TAIL:]]


def shorten(text: str, length: int) -> str:
    """The text, or where it is longer its beginning and its end, which are `length` characters."""
    return text if len(text) <= length else f"{text[: length // 2]} … {text[-length // 2 :]}"
