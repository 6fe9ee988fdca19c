"""From ready jobs to the scheduler: what is submitted together, what was submitted before, and what is cancelled."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Protocol

from snakemake_interface_common.exceptions import WorkflowError

from fusion.artifacts import digest
from fusion.job import Job
from snakemake_executor_plugin_forkserver.payload import payload
from snakemake_executor_plugin_forkserver.report import describe

from . import environment, gpus
from .backends import Backend, Local, Slurm
from .jobs import batch_name, comment, is_called, limited
from .journal import Batch, Journal, Place
from .launch import Launch, shared_path
from .resources import parameters
from .runner import Command, Stages, started
from .settings import ExecutorSettings


@dataclass
class Submitted:
    """One job that the scheduler has: what it is known by, and where its outcome will be."""

    job: Any
    batch: Batch
    place: Place
    outcome: Path
    misses: int = 0

    @property
    def id(self) -> str:
        """The scheduler's id."""
        return self.batch.job_id(self.place.task)

    @property
    def is_started(self) -> bool:
        """Whether the job itself has begun."""
        return started(self.outcome).exists()

    @property
    def is_process_started(self) -> bool:
        """Whether the process has begun that it may share with others: its first job has."""
        return started(_outcome(self.outcome.parent, self.place.task, 0)).exists()

    def streams(self) -> Iterator[Path]:
        """What submitit and SLURM wrote of the job."""
        for ending in ("err", "out"):
            yield self.outcome.parent / f"{self.id}_0_log.{ending}"


class Host(Protocol):
    """What submitting needs of Snakemake's executor."""

    workflow: Any
    logger: Any

    def format_job_exec(self, job: Any) -> str:
        """The command of a Snakemake that runs the job."""
        ...

    def watch(self, submitted: Submitted) -> None:
        """The scheduler has the job."""
        ...

    def refuse(self, job: Any, why: str) -> None:
        """The job was not submitted and has failed."""
        ...


class Submissions:
    """All that this process, or one before it, has submitted. Raises WorkflowError where that is not possible."""

    def __init__(self, host: Host, settings: ExecutorSettings) -> None:
        self._host, self._settings = host, settings
        try:
            self._journal = Journal(settings.folder.absolute())
        except (RuntimeError, OSError) as error:
            raise WorkflowError(f"cannot submit jobs: {error}") from error
        self.backend = _open_backend(settings, host)
        self._lock = RLock()  # jobs are submitted by the scheduler's thread and by the one that polls
        self._waiting: Sequence[Any] = ()  # to be submitted later: no GPU was free, or their process died before them
        self.cancelled = False

    def submit(self, jobs: Sequence[Any]) -> None:
        """Submits jobs: one array for those with equal needs, within its limit."""
        alike: dict[str, list[Any]] = defaultdict(list)
        with self._lock:
            for job in jobs:
                try:
                    alike[repr((_wanted(job), self._bundle(job), job.name))].append(job)
                except ValueError as error:
                    self._host.refuse(job, str(error))
            most = min(self._settings.array_limit, self.backend.largest_array)
            for same in alike.values():
                bundles = list(_chunks(same, self._bundle(same[0])))
                for batch in _chunks(bundles, most):
                    self._submit_batch(batch)

    def later(self, job: Any) -> None:
        """Lets the job wait for the next `submit_waiting`."""
        with self._lock:
            self._waiting = [*self._waiting, job]

    def submit_waiting(self) -> None:
        """Submits the jobs that had to wait, if there are any."""
        with self._lock:
            waiting, self._waiting = self._waiting, ()
            if not self.cancelled:
                self.submit(waiting)

    @property
    def has_waiting(self) -> bool:
        """Whether any job waits."""
        return bool(self._waiting)

    def take_up(self, job: Any) -> bool:
        """Whether the job was submitted by a process before this one, and is now watched by this one."""
        output = _output(job)
        place = self._journal.place(output)
        if place is None:
            return False
        batch, outcome = self._journal.batches[place.batch], self._outcome(place)
        same = place.digest == _digest(job, self._work(job)) and not _newer(job.input, batch.time)
        done = json.loads(outcome.read_text(encoding="utf-8")) if outcome.exists() else None
        if batch.id and same and not (done and done["error"]):
            identifier = batch.job_id(place.task)
            self._host.logger.info(f"» {describe(job)} was submitted before: job {identifier}")
            self.backend.take_up(identifier)
            self._watch(job, batch)
            return True
        if done is None:  # it may still run, and would write to the same place
            self._end(batch, place)
        self._journal.over(output)
        return False

    def over(self, job: Any) -> None:
        """Notes that Snakemake knows the job's end."""
        self._journal.over(_output(job))

    def cancel(self) -> None:
        """Cancels everything that was submitted and is not over, and what was just being submitted."""
        self.cancelled = True
        self.backend.stop()
        batches = [batch for batch in self._journal.batches.values() if batch.open]
        certain = self.backend.cancel({batch.id for batch in batches if batch.id})
        for batch in batches:
            if certain if batch.id else self.backend.cancel_named(batch.name):
                for output in list(batch.open):  # what is done stays for the next run to find
                    place = self._journal.place(output)
                    if place is not None and not self._outcome(place).exists():
                        self._journal.over(output)
            else:
                self._host.logger.error(f"{batch.name} may still be in the queue; the next run takes it up")

    def close(self) -> None:
        """Lets another process have the journal."""
        self._journal.close()

    def _submit_batch(self, bundles: Sequence[Sequence[Any]]) -> None:
        """Submits one job, or one array: a task a bundle."""
        jobs = [job for bundle in bundles for job in bundle]
        wanted = _wanted(jobs[0]) | {"slurm_comment": comment(jobs)}
        try:
            if not self.backend.room(int(wanted.get("gpus_per_node", 0))):
                self._waiting = [*self._waiting, *jobs]
                return
            works = [[self._work(job) for job in bundle] for bundle in bundles]
            name = batch_name(jobs[0], self._host.workflow.globals["config"])
            folder = self._journal.folder / name
            folder.mkdir(parents=True)
            self._prepare(jobs)
        except (OSError, WorkflowError, ValueError) as error:
            return self._refuse(jobs, error)
        outputs = [
            [(_output(job), _digest(job, work)) for job, work in zip(*pair, strict=True)]
            for pair in zip(bundles, works, strict=True)
        ]
        functions = [self._function(bundles[task][0], work, folder, task) for task, work in enumerate(works)]
        if self.cancelled:
            return
        batch = self._journal.submitting(name, outputs)
        try:
            identifier = self.backend.submit(folder, name, functions, wanted)
        except (ValueError, OSError) as error:
            if not self.cancelled:  # else, whether it was submitted is for `cancel`, or the next run, to find out
                for job in jobs:
                    self.over(job)
                self._refuse(jobs, error)
            return
        self._journal.submitted(name, identifier)
        if self.cancelled:  # while it was submitted
            self.backend.cancel([identifier])
            return
        for job in jobs:
            self._watch(job, batch)

    def _prepare(self, jobs: Sequence[Any]) -> None:
        for job in jobs:
            if is_called(job):
                self._host.workflow.async_run(job.prepare())  # drops old output, makes folders
            job.register()  # from here on the output is incomplete

    def _refuse(self, jobs: Sequence[Any], error: Exception) -> None:
        for job in jobs:
            self._host.refuse(job, str(error))

    def _bundle(self, job: Any) -> int:
        """How many jobs like this one share a process: as many as the resource `bundle` says."""
        return max(1, int(job.resources.get("bundle") or 1)) if self.backend.bundles and is_called(job) else 1

    def _work(self, job: Any) -> Job | str:
        """What is to be done: the job of a stage, or the command of a Snakemake."""
        if not is_called(job):
            return self._host.format_job_exec(job)
        return payload(job, gpus=gpus.count(job.resources))

    def _function(self, first: Any, works: Sequence[Any], folder: Path, task: int) -> Stages | Command:
        """What a task calls; `first` is the first job of its bundle."""
        outcomes = [str(_outcome(folder, task, index)) for index in range(len(works))]
        here = str(self._host.workflow.workdir_init)
        if not is_called(first):
            return Command(works[0], here, outcomes[0])
        return Stages(works, outcomes, here, shared_path(), time.time())

    def _watch(self, job: Any, batch: Batch) -> None:
        place = self._journal.place(_output(job))
        assert place is not None
        self._host.watch(Submitted(job, batch, place, self._outcome(place)))

    def _end(self, batch: Batch, place: Place) -> None:
        """Cancels a job and waits until it has ended; also while the scheduler does not answer."""
        if not batch.id:
            while not self.backend.cancel_named(batch.name):
                time.sleep(1)
            return
        identifier = batch.job_id(place.task)
        while True:
            self.backend.cancel([identifier])
            states = self.backend.states([identifier])
            if states is not None and (identifier not in states or states[identifier].end):
                return
            time.sleep(1)

    def _outcome(self, place: Place) -> Path:
        """Where the job at this place leaves its outcome."""
        return _outcome(self._journal.folder / place.batch, place.task, place.index)


def _open_backend(settings: ExecutorSettings, host: Host) -> Backend:
    launch = Launch(settings.setup, settings.python, host.workflow.remote_execution_settings.precommand or "")
    if settings.cluster == "local":
        return Local(settings.signal_delay, settings.max_timeouts, launch, settings.devices)
    if settings.cluster != "slurm":
        raise WorkflowError(f"submitit-cluster: got {settings.cluster!r}, expected 'slurm' or 'local'")
    if words := environment.dropped():
        host.logger.warning(words)
    try:
        return Slurm(settings.signal_delay, settings.max_timeouts, launch)
    except OSError as error:
        raise WorkflowError(f"no SLURM here ({error}); expected sbatch and squeue on the PATH") from error
    except ValueError as error:
        raise WorkflowError(str(error)) from error


def _wanted(job: Any) -> dict[str, Any]:
    """submitit's parameters for the job."""
    return parameters(dict(job.resources.items()), job.threads, limited(job))


def _output(job: Any) -> str:
    """What a job is known by from one process to the next: its first output."""
    return min(str(path) for path in job.output)


def _outcome(folder: Path, task: int, index: int) -> Path:
    return folder / f"{task}.{index}.json"


def _digest(job: Any, work: Job | str) -> str:
    """What tells a job from another one that makes the same output."""
    if isinstance(work, Job):
        return digest(asdict(work))
    singles = job.jobs if job.is_group() else [job]
    return digest([[str(one.rule.shellcmd), sorted(map(str, one.input)), dict(one.params.items())] for one in singles])


def _newer(inputs: Any, when: float) -> bool:
    """Whether any of the files was changed after that time: a job submitted then did not see it."""
    return any(path.stat().st_mtime > when for path in map(Path, map(str, inputs)) if path.exists())


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))
