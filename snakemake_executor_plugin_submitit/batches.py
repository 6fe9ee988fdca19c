"""What a job is to the scheduler: what it is known by, what it is to do, and how many like it share a task."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusion import record
from fusion.artifacts import digest
from fusion.job import Job
from snakemake_executor_plugin_forkserver.payload import payload

from . import gpus, outcome
from .entries import Batch, Place
from .jobs import is_called, limited
from .launch import shared_path
from .life import Life
from .resources import parameters
from .runner import Command, Stages


@dataclass
class Submitted:
    """One job that the scheduler has: what it is known by, where its outcome will be, and what was seen of it."""

    job: Any
    batch: Batch
    place: Place
    outcome: Path
    life: Life = field(default_factory=Life)

    @property
    def id(self) -> str:
        """The scheduler's id."""
        return self.batch.job_id(self.place.task)

    @property
    def is_started(self) -> bool:
        """Whether the job itself has begun."""
        return os.path.exists(outcome.started(self.outcome))

    @property
    def is_process_started(self) -> bool:
        """Whether the process has begun that it may share with others: its first job has."""
        return os.path.exists(outcome.started(outcome.place(self.outcome.parent, self.place.task, 0)))

    @property
    def host(self) -> str:
        """Where it runs or ran; '' where that is not known."""
        try:
            return outcome.started(self.outcome).read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    @property
    def seconds(self) -> float:
        """From its begin to the last change of what it made, by the clock of the files; nan where that is not known."""
        try:
            ends = [os.stat(path).st_mtime for path in self.job.output]
            return max(ends) - os.stat(outcome.started(self.outcome)).st_mtime
        except OSError:
            return math.nan

    def streams(self) -> Iterator[Path]:
        """What submitit and SLURM wrote of the job."""
        for ending in ("err", "out"):
            yield self.outcome.parent / f"{self.id}_0_log.{ending}"


def key(job: Any) -> str:
    """What a job is known by from one process to the next: its first output, or else its rule and wildcards."""
    return min(map(str, job.output), default=f"{job.name} {dict(getattr(job, 'wildcards_dict', {}))}")


def wanted(job: Any) -> dict[str, Any]:
    """submitit's parameters for the job. Raises ValueError where its resources cannot be asked for."""
    return parameters(dict(job.resources.items()), job.threads, limited(job))


def bundle(job: Any) -> int:
    """How many jobs like this one share a process: as many as the resource `bundle` says."""
    return max(1, int(job.resources.get("bundle") or 1)) if is_called(job) else 1


def work(job: Any, command: Callable[[Any], str]) -> Job | str:
    """What is to be done: the job of a stage, or the `command` of a Snakemake."""
    return payload(job, gpus=gpus.count(job.resources)) if is_called(job) else command(job)


def hashes(job: Any, task: Job | str) -> tuple[str, str]:
    """What tells a job from another one that makes the same output: its work, and what its inputs are now."""
    return _work_hash(job, task), digest(sorted((str(path), _state(str(path))) for path in job.input))


def function(works: Sequence[Any], folder: Path, task: int, here: str) -> Stages | Command:
    """What a task of an array calls, `here`."""
    outcomes = [str(outcome.place(folder, task, index)) for index in range(len(works))]
    if isinstance(works[0], str):
        return Command(works[0], here, outcomes[0])
    return Stages(works, outcomes, here, shared_path(), time.time())


def _work_hash(job: Any, task: Job | str) -> str:
    if isinstance(task, Job):
        return digest(asdict(task))
    singles = job.jobs if job.is_group() else [job]
    return digest([[str(one.rule.shellcmd), sorted(map(str, one.input)), dict(one.params.items())] for one in singles])


def _state(path: str) -> str | list[int]:
    """What a file says of itself: what it was made from; without a record its time of change, on its own clock."""
    made = record.identity(path)
    if made:
        return made
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return [found.st_mtime_ns, found.st_size]
