"""From ready jobs to the scheduler: what is submitted together, what was submitted before, and what is cancelled."""

import shutil
from collections.abc import Iterable, Sequence
from threading import RLock
from typing import Any, Protocol

from snakemake_interface_common.exceptions import WorkflowError

from . import batches, limits
from .backends import Full
from .batches import Submitted
from .bundles import Bundles, Waiting
from .earlier import Earlier
from .elsewhere import remember, require_free
from .entries import Batch, here
from .held import Held, NotNow
from .jobs import batch_name, comment, is_called
from .journal import Journal
from .life import Life
from .opening import open_backend
from .room import Room
from .search import Search
from .settings import ExecutorSettings
from .slurm import State
from .tidy import Tidying
from .voice import Voice


class Host(Protocol):
    """What submitting needs of Snakemake's executor."""

    workflow: Any
    voice: Voice

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
    """All that this process, or one before it, has submitted. Raises WorkflowError where that is not possible.

    needed: the jobs of this run.
    """

    def __init__(self, host: Host, settings: ExecutorSettings, needed: Sequence[Any]) -> None:
        self._host, self._settings, self._voice = host, settings, host.voice
        precommand = host.workflow.remote_execution_settings.precommand or ""
        self.backend = open_backend(settings, precommand, self._voice.say)
        self.backend.tell = self._voice.answer
        try:
            remember(settings.folder.absolute())
            self._journal = Journal(settings.folder.absolute(), self._voice.say)
        except (RuntimeError, OSError) as error:
            raise WorkflowError(f"cannot submit jobs: {error}") from error
        self._cluster = here(settings.cluster)
        self._search = Search(self._journal, self.backend, self._voice, settings.patience)
        self._earlier = Earlier(self._journal, self._search, self.backend, self._voice, self._hashes, self._cluster)
        self._tidying = Tidying(self._journal.folder, self._open, settings.keep_failed)
        self._limits = limits.take_over(host.workflow) if self.backend.is_slow else {}
        self._room = Room(self.backend, self._limits, settings.poll)
        self._bundles = Bundles(settings.bundle_wait, needed)
        most = min(settings.array_limit, self.backend.largest_array)
        self.held = Held(self._bundles, self._room, most, self._submit_batch, host.refuse, self._voice)
        self._lock = RLock()  # jobs are submitted by the scheduler's thread and by the one that polls
        self.cancelled = self._is_left = False
        self._begin({batches.key(job) for job in needed})

    def submit(self, jobs: Iterable[Any]) -> None:
        """Submits jobs: one array for those with equal needs, within its limit. Those that cannot be yet wait."""
        with self._lock:
            self.held.add(one for job in jobs if (one := self._waiting(job)))
            self.submit_waiting()

    def later(self, job: Any) -> None:
        """Lets a job wait for the next `submit_waiting`."""
        with self._lock:
            self.held.add(one for one in [self._waiting(job)] if one)

    def submit_waiting(self) -> None:
        """Submits the jobs that had to wait, as far as there is room."""
        with self._lock:
            if not self.cancelled:
                self.held.submit()

    def _begin(self, needed: set[str]) -> None:
        """Looks at what a process before this one left; `needed`: the keys of the jobs that this run needs."""
        require_free(needed, self._journal.folder, self._cluster)
        self._earlier.begin(needed)
        places = [(self._journal.batches[place.batch], place) for place in self._journal.live.values()]
        ids = (batch.job_id(place.task) for batch, place in places if batch.id)
        self._room.has(ids, {limits.JOBS: 1})
        self.tidy()

    def take_up(self, job: Any) -> bool:
        """Whether the job was submitted by a process before this one, and is now watched by this one."""
        self._bundles.came(job)
        batch = self._earlier.take_up(job)
        if batch is not None:
            submitted = self._watch(job, batch, Life(taken_up=True))
            self._room.has([submitted.id], limits.takes(job, self._limits))
        return batch is not None

    def is_gone(self, submitted: Submitted, state: State | None) -> bool:
        """Whether a job that is awaited is certainly gone; state: what the last query said of it."""
        return self._search.is_gone(submitted, state)

    def over(self, job: Any) -> None:
        """Notes that Snakemake knows the job's end."""
        self._journal.over(batches.key(job))
        self._room.one_ended()

    def tidy(self) -> None:
        """Removes the files of batches that are over."""
        self._tidying.tidy()

    def _open(self) -> set[str]:
        return {batch.name for batch in list(self._journal.batches.values()) if batch.open}

    def cancel(self) -> None:
        """Cancels everything that was submitted and is not over, and what was just being submitted."""
        self.cancelled = True
        self.backend.stop()
        open_ = [batch for batch in list(self._journal.batches.values()) if batch.open]
        count = sum(len(batch.open) for batch in open_)
        certain = self.backend.cancel({batch.id for batch in open_ if batch.id})
        for batch in open_:
            if certain if batch.id else self.backend.cancel_named(batch.name):
                self._journal.cancelled(batch.name)  # what is done stays for the next run to find
            else:
                self._voice.fail(f"{batch.name} may still be in the queue; the next run takes it up")
        if count:
            self._voice.say(f"what was submitted and is not over is cancelled ({count} jobs); the same command goes on")

    def leave(self) -> int:
        """Submits and cancels nothing any more; how many jobs the next process will find."""
        self.cancelled = self._is_left = True
        self.backend.stop()
        return len(self._journal.live)

    def close(self) -> None:
        """Lets another process have the journal."""
        self.tidy()
        self._journal.close()

    def _waiting(self, job: Any) -> Waiting | None:
        """The job with what it needs; None where that cannot be asked for, and it has failed."""
        try:
            size = batches.bundle(job) if self.backend.bundles else 1
            return Waiting(job, batches.wanted(job), size, limits.takes(job, self._limits))
        except (ValueError, TypeError) as error:
            return self.held.refuse([job], error)

    def _submit_batch(self, bundles: Sequence[Sequence[Waiting]]) -> None:
        """Submits one job, or one array: a task a bundle. Raises Full or NotNow where that cannot be now."""
        wanted, takes = bundles[0][0].wanted, bundles[0][0].takes
        try:
            if not self.backend.room(int(wanted.get("gpus_per_node", 0))):
                raise NotNow("no GPU is free")
        except ValueError as error:
            return self.held.refuse([one.job for bundle in bundles for one in bundle], error)
        prepared = [[ready for one in bundle if (ready := self._prepared(one.job))] for bundle in bundles]
        tasks = [task for task in prepared if task]
        if not tasks:
            return
        jobs = [job for task in tasks for job, _, _ in task]
        works = [[work for _, work, _ in task] for task in tasks]
        keys = [[key for _, _, key in task] for task in tasks]
        name = batch_name(jobs[0], self._host.workflow.globals["config"])
        folder = self._journal.folder / name
        here = str(self._host.workflow.workdir_init)
        functions = [batches.function(work, folder, task, here) for task, work in enumerate(works)]
        if self.cancelled:
            return
        batch = self._note(name, keys)
        try:
            identifier = self.backend.submit(folder, name, functions, {**wanted, "slurm_comment": comment(jobs)})
        except (ValueError, OSError) as error:
            if self.cancelled:  # whether it was submitted is for `cancel`, or the next run, to find out
                return
            for job in jobs:
                self._journal.over(batches.key(job))
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, Full):
                raise
            return self.held.refuse(jobs, error)
        self._journal.submitted(name, identifier)
        self._room.took((batch.job_id(task) for task in range(batch.tasks)), takes)
        if self.cancelled:  # while it was submitted
            if not self._is_left:
                self.backend.cancel([identifier])
            return
        for job in jobs:
            self._watch(job, batch, Life())

    def _note(self, name: str, keys: Sequence[Sequence[tuple[str, str, str]]]) -> Batch:
        """The batch, noted before it is submitted. NotNow where that cannot be."""
        try:
            (self._journal.folder / name).mkdir(parents=True)
            return self._journal.submitting(name, keys, self._cluster, self._settings.patience)
        except OSError as error:
            why = f"{self._journal.folder} cannot be written: {error}"
            self._voice.once(f"{why}; waiting for it")
            raise NotNow(why) from error

    def _prepared(self, job: Any) -> tuple[Any, Any, tuple[str, str, str]] | None:
        """The job, its work and what the journal is to know of it; None where that cannot be, and it has failed."""
        try:
            work = self._work(job)
            key = (batches.key(job), *self._hashes(job, work))
            if is_called(job):
                self._host.workflow.async_run(job.prepare())  # drops old output, makes folders
            job.register()  # from here on the output is incomplete
        except (OSError, WorkflowError, ValueError, TypeError) as error:
            return self.held.refuse([job], error)
        return job, work, key

    def _work(self, job: Any) -> Any:
        return batches.work(job, self._host.format_job_exec)

    def _watch(self, job: Any, batch: Batch, life: Life) -> Submitted:
        place = self._journal.places[batches.key(job)]
        submitted = Submitted(job, batch, place, self._journal.outcome_file(place), life)
        self._host.watch(submitted)
        return submitted

    def _hashes(self, job: Any, work: Any = None) -> tuple[str, str]:
        return batches.hashes(job, work or self._work(job))
