"""From ready jobs to the scheduler: what is submitted together, what was submitted before, and what is cancelled."""

import shutil
import time
from collections.abc import Collection, Iterable, Sequence
from threading import RLock
from typing import Any, Protocol

from snakemake_interface_common.exceptions import WorkflowError

from . import batches
from .backends import Full
from .batches import Submitted, Waiting
from .earlier import Earlier
from .elsewhere import remember, require_free
from .entries import Batch, here
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


class NotNow(Exception):
    """Why jobs cannot be submitted now, and may be soon."""


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
    """All that this process, or one before it, has submitted. Raises WorkflowError where that is not possible."""

    def __init__(self, host: Host, settings: ExecutorSettings) -> None:
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
        self._room = Room(self.backend, host.workflow.nodes, settings.poll)
        self._lock = RLock()  # jobs are submitted by the scheduler's thread and by the one that polls
        self._waiting: list[Waiting] = []
        self._watched: dict[str, Submitted] = {}
        self._failed: set[Any] = set()  # jobs that could not be submitted
        self._gathering = batches.Gathering()
        self.why = ""  # jobs wait, where a limit is the reason
        self.cancelled = self._is_left = False

    def submit(self, jobs: Iterable[Any]) -> None:
        """Submits jobs: one array for those with equal needs, within its limit. Those that cannot be yet wait."""
        with self._lock:
            now = time.monotonic()
            self._waiting += [Waiting(job, now) for job in jobs if self._can_be_asked_for(job)]
            self.submit_waiting()

    def later(self, job: Any) -> None:
        """Lets a job wait for the next `submit_waiting`."""
        with self._lock:
            self._watched.pop(batches.key(job), None)
            self._waiting.append(Waiting(job, time.monotonic()))

    def submit_waiting(self) -> None:
        """Submits the jobs that had to wait, as far as there is room."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            if self.cancelled:
                return
            for same in batches.alike(waiting, lambda job: (batches.wanted(job), self._bundle(job), job.name)):
                self._submit_alike(same)
            if not self._waiting:
                self.why = ""

    @property
    def waiting(self) -> int:
        """How many jobs are not submitted yet."""
        return len(self._waiting)

    def begin(self, needed: Collection[str]) -> None:
        """Looks at what a process before this one left; `needed`: the keys of the jobs that this run needs."""
        require_free(needed, self._journal.folder, self._cluster)
        self._earlier.begin(needed)
        places = [(self._journal.batches[place.batch], place) for place in self._journal.live.values()]
        self._room.has(batch.job_id(place.task) for batch, place in places if batch.id)
        self.tidy()

    def take_up(self, job: Any) -> bool:
        """Whether the job was submitted by a process before this one, and is now watched by this one."""
        batch = self._earlier.take_up(job)
        if batch is not None:
            self._watch(job, batch, Life(taken_up=True))
        return batch is not None

    def is_gone(self, submitted: Submitted, state: State | None) -> bool:
        """Whether a job that is awaited is certainly gone; state: what the last query said of it."""
        return self._search.is_gone(submitted, state)

    def over(self, job: Any) -> None:
        """Notes that Snakemake knows the job's end."""
        output = batches.key(job)
        self._watched.pop(output, None)
        self._journal.over(output)
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

    def _can_be_asked_for(self, job: Any) -> bool:
        try:
            batches.wanted(job)
            self._bundle(job)
        except (ValueError, TypeError) as error:
            self._refuse([job], error)
            return False
        self._failed.discard(job)
        return True

    def _submit_alike(self, same: Sequence[Waiting]) -> None:
        """Submits jobs with equal needs; what there is no room for, and what others may join, waits on."""
        size = self._bundle(same[0].job)
        bundles = batches.chunks(same, size)
        if len(bundles[-1]) < size and self._gathering.goes_on(bundles[-1], list(self._watched.values())):
            self._waiting += bundles.pop()
        most = min(self._settings.array_limit, self.backend.largest_array)
        while bundles and (tasks := self._room.of(min(most, len(bundles)))):
            part, bundles = bundles[:tasks], bundles[tasks:]
            try:
                self._submit_batch([[one.job for one in task] for task in part])
                continue
            except NotNow as error:
                self.why, is_over = str(error), True
            except OSError as error:
                self.why, is_over = f"{self._journal.folder} cannot be written: {error}", True
                self._voice.once(f"{self.why}; waiting for it")
            except Full as error:
                if not self._room.refused(tasks):
                    self._refuse([one.job for task in part for one in task], error)
                    continue
                self.why, is_over = str(error), False
                self._voice.once(f"SLURM takes no more jobs for now ({error}); the others follow as these end")
            left = [[one for one in task if one.job not in self._failed] for task in part]
            bundles = [*filter(None, left), *bundles]
            if is_over:
                break
        self._waiting += [one for task in bundles for one in task]

    def _submit_batch(self, bundles: Sequence[Sequence[Any]]) -> None:
        """Submits one job, or one array: a task a bundle. Raises Full or NotNow where that cannot be now."""
        wanted = batches.wanted(bundles[0][0])
        try:
            if not self.backend.room(int(wanted.get("gpus_per_node", 0))):
                raise NotNow("no GPU is free")
        except ValueError as error:
            return self._refuse([job for bundle in bundles for job in bundle], error)
        prepared = [[ready for job in bundle if (ready := self._prepared(job))] for bundle in bundles]
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
        folder.mkdir(parents=True)
        batch = self._journal.submitting(name, keys, self._cluster, self._settings.patience)
        try:
            identifier = self.backend.submit(folder, name, functions, wanted | {"slurm_comment": comment(jobs)})
        except (ValueError, OSError) as error:
            if self.cancelled:  # whether it was submitted is for `cancel`, or the next run, to find out
                return
            for job in jobs:
                self._journal.over(batches.key(job))
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, Full):
                raise
            return self._refuse(jobs, error)
        self._journal.submitted(name, identifier)
        self._room.took(batch.job_id(task) for task in range(batch.tasks))
        if self.cancelled:  # while it was submitted
            if not self._is_left:
                self.backend.cancel([identifier])
            return
        for job in jobs:
            self._watch(job, batch, Life())

    def _prepared(self, job: Any) -> tuple[Any, Any, tuple[str, str, str]] | None:
        """The job, its work and what the journal is to know of it; None where that cannot be, and it has failed."""
        try:
            work = self._work(job)
            key = (batches.key(job), *self._hashes(job, work))
            if is_called(job):
                self._host.workflow.async_run(job.prepare())  # drops old output, makes folders
            job.register()  # from here on the output is incomplete
        except (OSError, WorkflowError, ValueError, TypeError) as error:
            return self._refuse([job], error)
        return job, work, key

    def _refuse(self, jobs: Iterable[Any], error: Exception) -> None:
        for job in jobs:
            self._failed.add(job)
            self._host.refuse(job, str(error))

    def _bundle(self, job: Any) -> int:
        return batches.bundle(job) if self.backend.bundles else 1

    def _work(self, job: Any) -> Any:
        return batches.work(job, self._host.format_job_exec)

    def _watch(self, job: Any, batch: Batch, life: Life) -> None:
        place = self._journal.places[batches.key(job)]
        submitted = Submitted(job, batch, place, self._journal.outcome_file(place), life)
        self._watched[batches.key(job)] = submitted
        self._host.watch(submitted)

    def _hashes(self, job: Any, work: Any = None) -> tuple[str, str]:
        return batches.hashes(job, work or self._work(job))
