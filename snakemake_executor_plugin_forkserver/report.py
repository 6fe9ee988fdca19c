"""What executors say of a job."""

import os
from collections import deque
from collections.abc import Sequence
from typing import Any

TAIL = 15  # lines of a failed job's log to show


def has_stage(job: Any) -> bool:
    """Whether the job is a call of a function of the suite; a group of jobs is none."""
    return not job.is_group() and "stage" in dict(job.rule.params.items())


def describe(job: Any) -> str:
    """The job as a person names it: its rule and its wildcards."""
    if job.is_group():
        return f"group {job.groupid}"
    return " ".join([job.rule.name, *(f"{name}={value}" for name, value in job.wildcards.items())])


def tail(logs: Sequence[str]) -> str:
    """The last lines of the first of the logs that has any, and its name."""
    for log in logs:
        if os.path.isfile(log) and os.path.getsize(log):
            with open(log, encoding="utf-8", errors="replace") as file:
                lines = "".join(f"    {line}" for line in deque(file, maxlen=TAIL))
            return f"The end of its log {log}:\n{lines}"
    return f"It left no log; expected one of {', '.join(logs)}" if logs else "It has no log; what it printed is above"
