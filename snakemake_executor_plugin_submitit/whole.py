"""What a job made of which no outcome could be read: whether it is whole, and where it is kept."""

import os
import time
from typing import Any

from fusion import record
from snakemake_executor_plugin_forkserver.payload import payload
from snakemake_executor_plugin_forkserver.report import has_stage


def is_whole(job: Any) -> bool:
    """Whether every output of a stage is there, and has a record that says that this job made it and ended well."""
    try:
        return has_stage(job) and all(os.path.exists(path) for path in job.output) and record.is_current(payload(job))
    except (OSError, ValueError):
        return False


def set_aside(job: Any) -> list[str]:
    """Moves the outputs to names of their own, which are returned: Snakemake deletes those of a job that failed.

    Those of a stage are not moved: they are written at once, and without a record they are not whole.
    """
    moved = []
    for path in map(str, () if has_stage(job) else job.output):
        if os.path.exists(path):
            aside = f"{path}.lost-{time.time_ns()}"
            os.replace(path, aside)
            moved.append(aside)
    return moved
