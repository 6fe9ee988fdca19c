"""Snakemake's remote executor by submitit: batches of ready jobs in, one poll for all of them, results out."""

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import RLock, current_thread, main_thread
from typing import Any

from snakemake.benchmark import BenchmarkRecord, write_benchmark_records
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

from fusion.artifacts import digest
from fusion.job import Job
from snakemake_executor_plugin_forkserver.payload import payload
from snakemake_executor_plugin_forkserver.progress import Progress
from snakemake_executor_plugin_forkserver.report import describe, has_stage, tail

from .backends import Backend, Local, Slurm
from .journal import Batch, Journal, Place
from .resources import parameters
from .runner import Command, Stages, started

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=True,
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=0,
)

LOOK = 0.3  # seconds between two looks at the results, which are files, at least
IDLE, LONGEST = 30, 3.0  # times as long as looking took, where that is longer, and at most so many seconds
SURE = 2  # polls in a row that must find a job gone before it counts as lost: its result may still be on the way


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """Settings: `--submitit-poll` and so on, or `submitit-poll:` in a profile."""

    cluster: str = field(
        default="slurm", metadata={"help": "Where jobs run: 'slurm', or 'local' for processes of this machine."}
    )
    folder: Path = field(
        default=Path(".snakemake/submitit"),
        metadata={"help": "Where submitit keeps its files; all nodes must see it."},
    )
    poll: float = field(default=10.0, metadata={"help": "Seconds between two queries of the scheduler."})
    array_limit: int = field(default=1000, metadata={"help": "The most tasks of one job array."})
    max_timeouts: int = field(
        default=3, metadata={"help": "How often a job that reaches its time limit is started again."}
    )
    signal_delay: int = field(
        default=120, metadata={"help": "Seconds before the time limit at which a job is asked to stop."}
    )
    devices: str = field(
        default="", metadata={"help": "With cluster=local: the GPUs to share out, such as '0,1'; all by default."}
    )


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


class Executor(RemoteExecutor):
    """Submits jobs in batches and reports their ends."""

    dag: Any  # Snakemake's interfaces declare less than it passes
    workflow: Any
    logger: Any
    # the polling begins before __post_init__
    next_seconds_between_status_checks = LOOK  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    _waiting: Sequence[Any] = ()  # jobs to submit at the next poll: no GPU was free, or their process died before them

    def __post_init__(self) -> None:
        self._settings: ExecutorSettings = self.workflow.executor_settings
        try:
            self._journal = Journal(self._settings.folder.absolute())
        except (RuntimeError, OSError) as error:
            raise WorkflowError(f"cannot submit jobs: {error}") from error
        self._backend = self._open_backend()
        self._progress = Progress(Counter(job.rule.name for job in self.dag.needrun_jobs()))
        self._submitting = RLock()  # jobs are submitted by the scheduler's thread and by the one that polls
        self._polled = 0.0
        self._cancelled = False

    def additional_general_args(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What a Snakemake in a job is given: it runs the job there and then."""
        return "--executor local --quiet all"

    def run_jobs(self, jobs: list[Any]) -> None:
        """Takes up the jobs that are submitted already, and submits the others: those with equal needs together."""
        if current_thread() is main_thread():
            # Snakemake would let running jobs end, which may take days: SIGTERM is to be as prompt as Ctrl-C
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        fresh = []
        for job in jobs:
            self.run_job_pre(job)
            self._progress.start(job, time.monotonic())
            if not self._take_up(job):
                fresh.append(job)
        with self._submitting:
            self._submit(fresh)

    def run_job(self, job: Any) -> None:
        """Submits one job."""
        self.run_jobs([job])

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancels everything that was submitted and is not over, and what was just being submitted."""
        self._cancelled = True
        self._backend.stop()
        batches = [batch for batch in self._journal.batches.values() if batch.open]
        certain = self._backend.cancel({batch.id for batch in batches if batch.id})
        for batch in batches:
            if certain if batch.id else self._backend.cancel_named(batch.name):
                for output in list(batch.open):  # what is done stays for the next run to find
                    if not self._outcome(output).exists():
                        self._journal.over(output)
            else:
                self.logger.error(f"{batch.name} may still be in the queue; the next run takes it up")

    def shutdown(self) -> None:
        """Ends the polling."""
        super().shutdown()
        self._journal.close()

    def handle_job_success(self, job: Any) -> None:
        """Notes that the job is over, now that Snakemake has its output, and logs how far the run is."""
        self._journal.over(_output(job))
        for single in job.jobs if job.is_group() else [job]:
            self.logger.info(self._progress.finish(single, single.rule.name, describe(single), time.monotonic()))

    def handle_job_error(self, job: Any) -> None:
        """Notes that the job is over; what is to be said has been said."""
        self._journal.over(_output(job))

    async def check_active_jobs(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Reports the jobs that are over, and yields the others."""
        jobs: list[Submitted] = [info.aux["submitted"] for info in active_jobs]  # pyright: ignore
        began = time.monotonic()
        finished = _existing(submitted.outcome for submitted in jobs)
        looked, states = time.monotonic() - began, None
        if (
            jobs
            and time.monotonic() - self._polled >= min(self._settings.poll, self._backend.longest_poll)
            and not self._cancelled
        ):
            ids = {submitted.id for submitted in jobs if submitted.outcome not in finished}
            states = await asyncio.to_thread(self._backend.states, ids) if ids else {}
            self._polled = time.monotonic()
            finished |= _existing(submitted.outcome for submitted in jobs)  # they may have ended while we asked
        for info, submitted in zip(active_jobs, jobs, strict=True):
            if self._cancelled:
                continue
            if submitted.outcome in finished:
                self._finish(info, submitted)
            elif states is None or not self._is_lost(submitted, states):
                yield info
            else:
                self._lose(info, submitted, states)
        if self._waiting:
            await asyncio.to_thread(self._submit_waiting)  # Snakemake prepares a job by an event loop of its own
        pause = min(max(LOOK, IDLE * looked), LONGEST)
        self.next_seconds_between_status_checks = pause  # pyright: ignore[reportIncompatibleMethodOverride]

    # -- submitting

    def _open_backend(self) -> Backend:
        limits = self._settings.signal_delay, self._settings.max_timeouts
        if self._settings.cluster == "local":
            return Local(*limits, self._settings.devices)
        if self._settings.cluster != "slurm":
            raise WorkflowError(f"submitit-cluster: got {self._settings.cluster!r}, expected 'slurm' or 'local'")
        try:
            return Slurm(*limits)
        except OSError as error:
            raise WorkflowError(f"no SLURM here ({error}); expected sbatch and squeue on the PATH") from error

    def _submit_waiting(self) -> None:
        with self._submitting:
            waiting, self._waiting = self._waiting, ()
            if not self._cancelled:
                self._submit(waiting)

    def _submit(self, jobs: Sequence[Any]) -> None:
        """Submits jobs: one array for those with equal needs, within its limit."""
        alike: dict[str, list[Any]] = defaultdict(list)
        for job in jobs:
            try:
                alike[repr((self._wanted(job), self._bundle(job), job.name))].append(job)
            except ValueError as error:
                self._refuse(job, str(error))
        most = min(self._settings.array_limit, self._backend.largest_array)
        for same in alike.values():
            bundles = list(_chunks(same, self._bundle(same[0])))
            for batch in _chunks(bundles, most):
                self._submit_batch(batch)

    def _submit_batch(self, bundles: Sequence[Sequence[Any]]) -> None:
        first = bundles[0][0]
        wanted = self._wanted(first)
        if isinstance(self._backend, Local):
            try:
                if not self._backend.room(int(wanted.get("gpus_per_node", 0))):
                    self._waiting = [*self._waiting, first]
                    return
            except ValueError as error:
                return self._refuse(first, str(error))
        name = f"{first.name}.{uuid.uuid4().hex[:8]}"
        folder = self._journal.folder / name
        try:
            works = [[self._work(job) for job in bundle] for bundle in bundles]
            folder.mkdir(parents=True)
            for bundle in bundles:
                for job in bundle:
                    if has_stage(job):
                        self.workflow.async_run(job.prepare())  # drops old output, makes folders
                    job.register()  # from here on the output is incomplete
        except (OSError, WorkflowError, ValueError) as error:
            for bundle in bundles:
                for job in bundle:
                    self._refuse(job, str(error))
            return
        functions = [
            self._function(bundle, work, folder, task)
            for task, (bundle, work) in enumerate(zip(bundles, works, strict=True))
        ]
        outputs = [
            [(_output(job), _digest(job, work)) for job, work in zip(*pair, strict=True)]
            for pair in zip(bundles, works, strict=True)
        ]
        if self._cancelled:
            return
        batch = self._journal.submitting(name, outputs)
        try:
            identifier = self._backend.submit(folder, name, functions, wanted)
        except (ValueError, OSError) as error:
            if self._cancelled:  # whether it was submitted is for `cancel_jobs`, or the next run, to find out
                return
            for bundle in bundles:
                for job in bundle:
                    self._journal.over(_output(job))
                    self._refuse(job, str(error))
            return
        self._journal.submitted(name, identifier)
        if self._cancelled:  # while it was submitted
            self._backend.cancel([identifier])
            return
        for bundle in bundles:
            for job in bundle:
                self._watch(job, batch)

    def _wanted(self, job: Any) -> dict[str, Any]:
        return parameters(dict(job.resources.items()), job.threads)

    def _bundle(self, job: Any) -> int:
        """How many jobs like this one share a process: as many as the resource `bundle` says."""
        return max(1, int(job.resources.get("bundle") or 1)) if self._backend.bundles and has_stage(job) else 1

    def _work(self, job: Any) -> Job | str:
        """What is to be done: the job of a stage, or the command of a Snakemake."""
        if not has_stage(job):
            return self.format_job_exec(job)
        return payload(job, gpus=int(job.resources.get("gpus") or 0))

    def _function(self, bundle: Sequence[Any], works: Sequence[Any], folder: Path, task: int) -> Stages | Command:
        outcomes = [str(_outcome(folder, task, index)) for index in range(len(bundle))]
        here = str(self.workflow.workdir_init)
        if not has_stage(bundle[0]):
            return Command(works[0], here, outcomes[0])
        return Stages(works, outcomes, here, sys.path, time.time())

    def _watch(self, job: Any, batch: Batch) -> None:
        place = self._journal.place(_output(job))
        assert place is not None
        submitted = Submitted(job, batch, place, self._outcome(_output(job)))
        info = SubmittedJobInfo(job, external_jobid=submitted.id, aux={"submitted": submitted})
        self.report_job_submission(info, register_job=False)

    def _take_up(self, job: Any) -> bool:
        """Whether the job was submitted by a process before this one, and is now watched by this one."""
        output = _output(job)
        place = self._journal.place(output)
        if place is None:
            return False
        batch, outcome = self._journal.batches[place.batch], self._outcome(output)
        same = place.digest == _digest(job, self._work(job)) and not _newer(job.input, batch.time)
        done = json.loads(outcome.read_text(encoding="utf-8")) if outcome.exists() else None
        if batch.id and same and not (done and done["error"]):
            self.logger.info(f"» {describe(job)} was submitted before: job {batch.job_id(place.task)}")
            if isinstance(self._backend, Local):
                self._backend.take_up(batch.job_id(place.task))
            self._watch(job, batch)
            return True
        if done is None:  # it may still run, and would write to the same place
            self._end(batch, place)
        self._journal.over(output)
        return False

    def _end(self, batch: Batch, place: Place) -> None:
        """Cancels a job and waits until it has ended; also while the scheduler does not answer."""
        if not batch.id:
            while not self._backend.cancel_named(batch.name):
                time.sleep(1)
            return
        identifier = batch.job_id(place.task)
        while True:
            self._backend.cancel([identifier])
            states = self._backend.states([identifier])
            if states is not None and (identifier not in states or states[identifier].end):
                return
            time.sleep(1)

    def _outcome(self, output: str) -> Path:
        """Where the job that makes this output leaves its outcome."""
        place = self._journal.place(output)
        assert place is not None
        return _outcome(self._journal.folder / place.batch, place.task, place.index)

    def _refuse(self, job: Any, why: str) -> None:
        self.report_job_error(SubmittedJobInfo(job), msg=f"{describe(job)} was not submitted: {why}\n")

    # -- the end of jobs

    def _finish(self, info: SubmittedJobInfo, submitted: Submitted) -> None:
        found = json.loads(submitted.outcome.read_text(encoding="utf-8"))
        if found["error"]:
            return self._fail(info, submitted, f"failed: {found['error']}")
        if has_stage(submitted.job) and submitted.job.benchmark:
            try:
                _write_benchmark(submitted.job, found, self.workflow.output_settings.benchmark_extended)
            except OSError as error:
                return self._fail(info, submitted, f"has no benchmark: {error}")
        self.report_job_success(info)

    def _is_lost(self, submitted: Submitted, states: Any) -> bool:
        state = states.get(submitted.id)
        if state is not None and state.hopeless:
            return True
        gone = state is None or bool(state.end)
        submitted.misses = submitted.misses + 1 if gone else 0
        return submitted.misses >= SURE

    def _lose(self, info: SubmittedJobInfo, submitted: Submitted, states: Any) -> None:
        """Reports a job that will have no outcome; one that shared its process and had not begun is submitted again."""
        state = states.get(submitted.id)
        if state is not None and state.hopeless:
            self._backend.cancel([submitted.id])
            return self._fail(info, submitted, f"would wait for ever: SLURM says {state.reason}")
        first = _outcome(submitted.outcome.parent, submitted.place.task, 0)
        if started(first).exists() and not started(submitted.outcome).exists():
            with self._submitting:
                self._waiting = [*self._waiting, submitted.job]
            return
        why = state.end if state is not None else "it ended without a result, and SLURM knows no more of it"
        self._fail(info, submitted, f"is lost: {why}")

    def _fail(self, info: SubmittedJobInfo, submitted: Submitted, what: str) -> None:
        singles = submitted.job.jobs if submitted.job.is_group() else [submitted.job]
        own = [str(path) for job in singles for path in job.log]  # of an earlier run, if it had not begun
        logs = own * (started(submitted.outcome).exists() or submitted.job.is_group()) + [
            str(path) for path in self._streams(submitted)
        ]
        name = f"{describe(submitted.job)} (job {submitted.id})"
        self.report_job_error(info, msg=f"{name} {what}\n{tail(logs)}\n")

    def _streams(self, submitted: Submitted) -> Iterator[Path]:
        """What submitit and SLURM wrote of the job."""
        folder = self._journal.folder / submitted.batch.name
        for ending in ("err", "out"):
            yield folder / f"{submitted.id}_0_log.{ending}"


def _output(job: Any) -> str:
    """What a job is known by from one process to the next: its first output."""
    return min(str(path) for path in job.output)


def _outcome(folder: Path, task: int, index: int) -> Path:
    return folder / f"{task}.{index}.json"


def _existing(paths: Any) -> set[Path]:
    """Those of the paths that exist: one listing a folder, which also renews what a network file system remembers."""
    paths = set(paths)
    there: dict[Path, set[str]] = {}
    for folder in {path.parent for path in paths}:
        with suppress(OSError):  # a network file system may be away for a while
            there[folder] = set(os.listdir(folder))
    return {path for path in paths if path.name in there.get(path.parent, ())}


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


def _write_benchmark(job: Any, found: dict[str, Any], extended: bool) -> None:
    record = BenchmarkRecord(running_time=found["seconds"], max_rss=found["max_rss_mb"], cpu_time=found["cpu_seconds"])
    record.data_collected = True
    record.jobid, record.rule_name, record.threads = job.jobid, job.rule.name, job.threads
    record.wildcards, record.params, record.resources = job.wildcards, job.params, job.resources
    record.input = job.input
    write_benchmark_records([record], str(job.benchmark), extended)
