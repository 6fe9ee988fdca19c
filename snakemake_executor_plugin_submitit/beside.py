"""What is asked before another executor runs anything: does a scheduler have it already? Imports little until then."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from .settings import ExecutorSettings

LOOKING = ("submitit", "forkserver")  # executors that ask for themselves, under any Snakefile
HELD: list[Any] = []  # locks, until the end of this process


def hold_free(jobs: Collection[Any]) -> list[Any]:
    """Returns where no job of an earlier run is about to make, on a cluster, what these jobs make.

    Returns locks, where there is a folder of such jobs: as long as they are held, nobody submits others. Raises
    WorkflowError with the way out.
    """
    if not jobs or not Path(ExecutorSettings.folder).exists():
        return []
    # only where there is something to look at: the import takes a while
    from . import batches, elsewhere

    return elsewhere.hold_free({batches.key(job) for job in jobs})


def hold_free_for_any(workflow: Any) -> None:
    """The same for a Snakefile's `onstart`, where the executor is one that does not ask."""
    if workflow.executor_plugin.name not in LOOKING:
        HELD.extend(hold_free(list(workflow.dag.needrun_jobs())))
