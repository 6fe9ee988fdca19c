"""From ready jobs to the scheduler: what is submitted together, what was submitted before, and what is cancelled."""

import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Any, Protocol

from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_forkserver.report import describe, has_stage

from . import batches, outcome
from .backends import Backend, Full, Local, Slurm, cancel_named
from .batches import Submitted, Waiting
from .journal import Batch, Journal, Place
from .life import Life
from .room import Room
from .settings import ExecutorSettings
from .slurm import NoAnswer, State
from .tidy import tidy
from .voice import Voice

RETRY = 1.0  # seconds between two looks at whether a job has ended
MANY = 5  # jobs that are named one by one


class NoGpu(Exception):
    """No GPU of this machine is free now."""


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
        self.backend = _open_backend(settings)
        self.backend.tell = self._voice.answer
        try:
            self._journal = Journal(settings.folder.absolute(), self._voice.say)
        except (RuntimeError, OSError) as error:
            raise WorkflowError(f"cannot submit jobs: {error}") from error
        self._room = Room(self.backend, host.workflow.nodes, settings.poll)
        self._lock = RLock()  # jobs are submitted by the scheduler's thread and by the one that polls
        self._waiting: list[Waiting] = []
        self._watched: dict[str, Submitted] = {}
        self.why = ""  # jobs wait, where a limit is the reason
        self.cancelled = False

    def submit(self, jobs: Iterable[Any]) -> None:
        """Submits jobs: one array for those with equal needs, within its limit. Those that cannot be yet wait."""
        with self._lock:
            now = time.monotonic()
            self._waiting += [Waiting(job, now) for job in jobs if self._can_be_asked_for(job)]
            self.submit_waiting()

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

    def take_up(self, job: Any) -> bool:
        """Whether the job was submitted by a process before this one, and is now watched by this one."""
        output = batches.key(job)
        place = self._journal.places.get(output)
        if place is None:
            return False
        batch, done = self._journal.batches[place.batch], self._read(place)
        self._find_id(batch)
        change = self._change(job, place)
        ended_well = done is not None and not done.error
        if batch.id and not change and (ended_well or (done is None and not batch.cancelled)):
            identifier = batch.job_id(place.task)
            self.backend.take_up(identifier)
            self._watch(job, batch, Life(taken_up=True))
            self._voice.say(f"{describe(job)} was submitted before: job {identifier}")
            return True
        if batch.id and done is None:  # it may still run, and would write to the same place
            if not batch.cancelled:
                text = f"{describe(job)} was submitted before, as job {batch.job_id(place.task)}, and {change} since"
                self._voice.say(f"{text}: that job is cancelled, and it is submitted again")
            self._end(batch, place)
        self._journal.over(output)
        return False

    def begin(self, needed: Collection[str]) -> None:
        """Looks for what a process before this one left and nothing needs now; `needed`: the jobs' keys."""
        if self._journal.lost:
            self._end_named(",".join(self._journal.lost))
        kept = {(place.batch, place.task) for output, place in self._journal.places.items() if output in needed}
        left: dict[str, list[str]] = {}
        for output, place in list(self._journal.places.items()):
            batch = self._journal.batches[place.batch]
            self._find_id(batch)
            if output in needed:
                continue
            done = self._read(place)
            if not batch.id or (done is not None and done.error):
                self._journal.over(output)
            elif done is None and (place.batch, place.task) not in kept:
                left.setdefault(batch.job_id(place.task), []).append(output)
        self._tell_of_orphans(left)
        self.tidy()

    def over(self, job: Any) -> None:
        """Notes that Snakemake knows the job's end."""
        output = batches.key(job)
        self._watched.pop(output, None)
        self._journal.over(output)
        self._room.one_ended()

    def tidy(self) -> None:
        """Removes the files of batches that are over."""
        open_ = {batch.name for batch in self._journal.batches.values() if batch.open}
        tidy(self._journal.folder, open_, self._settings.keep_failed)

    def is_gone(self, submitted: Submitted) -> bool:
        """Looks for a job by the name of its batch, and cancels what may live of it; whether it is certainly gone."""
        batch = submitted.batch
        try:
            found = self.backend.named(batch.name)
        except NoAnswer as error:
            self.backend.tell(str(error))
            return False
        alive = {one for one, state in found.items() if not state.end}
        if alive and not any(one.partition("_")[0] == batch.id for one in alive):
            self._has_id(batch, alive)  # what sbatch said was not its id
            return False
        if submitted.id in alive:
            submitted.life.look(found[submitted.id], time.monotonic())
            return submitted.life.awaited is not None and self.backend.cancel([submitted.id])
        return self.backend.cancel([submitted.id])

    def cancel(self) -> None:
        """Cancels everything that was submitted and is not over, and what was just being submitted."""
        self.cancelled = True
        self.backend.stop()
        open_ = [batch for batch in self._journal.batches.values() if batch.open]
        certain = self.backend.cancel({batch.id for batch in open_ if batch.id})
        for batch in open_:
            if certain if batch.id else cancel_named(self.backend, batch.name):
                self._journal.cancelled(batch.name)  # what is done stays for the next run to find
            else:
                self._voice.fail(f"{batch.name} may still be in the queue; the next run takes it up")

    def leave(self) -> int:
        """Submits and cancels nothing any more; how many jobs the next process will find."""
        self.cancelled = True
        self.backend.stop()
        return len(self._journal.places)

    def close(self) -> None:
        """Lets another process have the journal."""
        self.tidy()
        self._journal.close()

    def _can_be_asked_for(self, job: Any) -> bool:
        try:
            batches.wanted(job)
        except ValueError as error:
            self._host.refuse(job, str(error))
            return False
        return True

    def _submit_alike(self, same: Sequence[Waiting]) -> None:
        """Submits jobs with equal needs; what there is no room for, and what others may join, waits on."""
        size = self._bundle(same[0].job)
        bundles = batches.chunks(same, size)
        begun = [one.job for one in self._watched.values() if one.is_process_started] if size > 1 else []
        if len(bundles[-1]) < size and batches.more_may_come(bundles[-1], begun):
            self._waiting += bundles.pop()
        most = min(self._settings.array_limit, self.backend.largest_array)
        while bundles and (tasks := self._room.of(min(most, len(bundles)))):
            part = [[one.job for one in task] for task in bundles[:tasks]]
            try:
                self._submit_batch(part)
            except NoGpu:
                break
            except Full as error:
                if self._room.refused(tasks):
                    self.why = str(error)
                    self._voice.once(f"SLURM takes no more jobs for now ({error}); the others follow as these end")
                    continue  # fewer of them, or none for a while
                self._refuse(part, error)
            bundles = bundles[tasks:]
        self._waiting += [one for task in bundles for one in task]

    def _submit_batch(self, bundles: Sequence[Sequence[Any]]) -> None:
        """Submits one job, or one array: a task a bundle. Raises Full or NoGpu where that cannot be now."""
        jobs = [job for bundle in bundles for job in bundle]
        wanted = batches.wanted(jobs[0])
        name = f"{jobs[0].name}.{uuid.uuid4().hex[:8]}"
        folder = self._journal.folder / name
        try:
            if not self.backend.room(int(wanted.get("gpus_per_node", 0))):
                raise NoGpu
            works = [[self._work(job) for job in bundle] for bundle in bundles]
            keys = [
                [(batches.key(job), *batches.hashes(job, work)) for job, work in zip(*pair, strict=True)]
                for pair in zip(bundles, works, strict=True)
            ]
            folder.mkdir(parents=True)
            self._prepare(jobs)
        except (OSError, WorkflowError, ValueError) as error:
            return self._refuse(bundles, error)
        here = str(self._host.workflow.workdir_init)
        functions = [batches.function(work, folder, task, here) for task, work in enumerate(works)]
        if self.cancelled:
            return
        batch = self._journal.submitting(name, keys)
        try:
            identifier = self.backend.submit(folder, name, functions, wanted)
        except (ValueError, OSError) as error:
            if self.cancelled:  # whether it was submitted is for `cancel`, or the next run, to find out
                return
            for job in jobs:
                self._journal.over(batches.key(job))
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, Full):
                raise
            return self._refuse(bundles, error)
        self._journal.submitted(name, identifier)
        self._room.take(batch.job_id(task) for task in range(batch.tasks))
        if self.cancelled:  # while it was submitted
            self.backend.cancel([identifier])
            return
        for job in jobs:
            self._watch(job, batch, Life())

    def _prepare(self, jobs: Sequence[Any]) -> None:
        for job in jobs:
            if has_stage(job):
                self._host.workflow.async_run(job.prepare())  # drops old output, makes folders
            job.register()  # from here on the output is incomplete

    def _refuse(self, bundles: Sequence[Sequence[Any]], error: Exception) -> None:
        for job in (job for bundle in bundles for job in bundle):
            self._host.refuse(job, str(error))

    def _bundle(self, job: Any) -> int:
        return batches.bundle(job) if self.backend.bundles else 1

    def _work(self, job: Any) -> Any:
        return batches.work(job, self._host.format_job_exec)

    def _watch(self, job: Any, batch: Batch, life: Life) -> None:
        place = self._journal.places[batches.key(job)]
        submitted = Submitted(job, batch, place, self._outcome(place), life)
        self._watched[batches.key(job)] = submitted
        self._host.watch(submitted)

    def _change(self, job: Any, place: Place) -> str:
        """What of a job is not as it was when it was submitted; '' where nothing is."""
        try:
            work, inputs = batches.hashes(job, self._work(job))
        except (ValueError, WorkflowError) as error:
            return f"cannot be submitted ({error})"
        if work != place.work:
            return "what it is to do has changed"
        return "its inputs have changed" if inputs != place.inputs else ""

    def _find_id(self, batch: Batch) -> None:
        """Asks for the id of a batch that the process which submitted it did not note."""
        if not batch.id and (found := self._ask(lambda: self.backend.named(batch.name))):
            self._has_id(batch, [one for one, state in found.items() if not state.end] or found)

    def _has_id(self, batch: Batch, ids: Iterable[str]) -> None:
        """Notes the id of a batch; of several submissions of it, all but the last are cancelled."""
        *others, last = sorted({one.partition("_")[0] for one in ids}, key=int)
        if others:
            self.backend.cancel(others)
        self._journal.submitted(batch.name, last)

    def _end(self, batch: Batch, place: Place) -> None:
        """Cancels a job and waits until it has ended; also while the scheduler does not answer."""
        identifier = batch.job_id(place.task)
        while True:
            self.backend.cancel([identifier])
            state = self._ask(lambda: self.backend.states([identifier])).get(identifier)
            if state is None or state.end:
                return
            self._voice.once(f"waiting for the end of job {identifier}, which is cancelled")
            time.sleep(RETRY)

    def _end_named(self, names: str) -> None:
        """Cancels what was submitted under these names, and waits until it has ended."""
        while alive := [one for one, state in self._ask(lambda: self.backend.named(names)).items() if not state.end]:
            self._voice.once(
                f"what job {', '.join(alive)} of an earlier run makes is not known any more: it is cancelled"
            )
            self.backend.cancel(alive)
            time.sleep(RETRY)

    def _ask(self, query: Callable[[], Mapping[str, State]]) -> Mapping[str, State]:
        """The answer of the scheduler, however long it takes."""
        while True:
            try:
                found = query()
                self.backend.tell("")
                return found
            except NoAnswer as error:
                self.backend.tell(str(error))
                time.sleep(RETRY)

    def _tell_of_orphans(self, left: Mapping[str, Sequence[str]]) -> None:
        """Names the jobs that nothing needs now; left: the outputs of each, by its id."""
        if not left:
            return
        states = self._ask(lambda: self.backend.states(left))
        alive = [one for one in left if one in states and not states[one].end]
        for output in (output for one in left.keys() - set(alive) for output in left[one]):
            self._journal.over(output)
        if alive:
            named = [f"{', '.join(left[one])} (job {one})" for one in alive[:MANY]] + ["…"] * (len(alive) > MANY)
            count = f"{len(alive)} jobs of an earlier run are" if len(alive) > 1 else "a job of an earlier run is"
            text = f"{count} still in the queue, and nothing needs what it makes now: {'; '.join(named)}"
            self._voice.say(f"{text}; `{self.backend.canceller} {' '.join(alive)}` cancels it")

    def _read(self, place: Place) -> outcome.Outcome | None:
        """The outcome of the job at this place; None where there is none, or none that can be read now."""
        with suppress(outcome.Damaged):
            return outcome.read(self._outcome(place))
        return None

    def _outcome(self, place: Place) -> Path:
        """Where the job at this place leaves its outcome."""
        return outcome.place(self._journal.folder / place.batch, place.task, place.index)


def _open_backend(settings: ExecutorSettings) -> Backend:
    limits = settings.signal_delay, settings.max_timeouts
    if settings.cluster == "local":
        return Local(*limits, settings.devices)
    if settings.cluster != "slurm":
        raise WorkflowError(f"submitit-cluster: got {settings.cluster!r}, expected 'slurm' or 'local'")
    try:
        return Slurm(*limits)
    except OSError as error:
        raise WorkflowError(f"no SLURM here ({error}); expected sbatch and squeue on the PATH") from error
