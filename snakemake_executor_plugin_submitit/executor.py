"""Snakemake's remote executor by submitit: batches of ready jobs in, one poll for all of them, results out."""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from snakemake.benchmark import BenchmarkRecord, write_benchmark_records
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

from snakemake_executor_plugin_forkserver.progress import Progress
from snakemake_executor_plugin_forkserver.report import describe, tail

from .jobs import is_called, require_known_resources
from .runner import PYTHON
from .settings import ExecutorSettings, common_settings
from .slurm import State
from .submissions import Submissions, Submitted

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

LOOK = 0.3  # seconds between two looks at the results, which are files, at least
IDLE, LONGEST = 30, 3.0  # times as long as looking took, where that is longer, and at most so many seconds
SURE = 2  # polls in a row that must find a job gone before it counts as lost: its result may still be on the way


class Executor(RemoteExecutor):
    """Submits jobs in batches and reports their ends."""

    dag: Any  # Snakemake's interfaces declare less than it passes
    workflow: Any
    logger: Any
    # the polling begins before __post_init__
    _is_ready = False
    next_seconds_between_status_checks = LOOK  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        self._settings: ExecutorSettings = self.workflow.executor_settings
        require_known_resources(self.dag.needrun_jobs())
        self._submissions = Submissions(self, self._settings)
        self._progress = Progress(Counter(job.rule.name for job in self.dag.needrun_jobs()))
        self._polled = 0.0
        self._is_ready = True

    def additional_general_args(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What a Snakemake in a job is given: it runs the job there and then."""
        return "--executor local --quiet all"

    def get_python_executable(self) -> str:
        """The Python of such a Snakemake: that of the job."""
        return f'"${PYTHON}"'

    def run_jobs(self, jobs: list[Any]) -> None:
        """Takes up the jobs that are submitted already, and submits the others: those with equal needs together."""
        if current_thread() is main_thread():
            # Snakemake would let running jobs end, which may take days: SIGTERM is to be as prompt as Ctrl-C
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        fresh = []
        for job in jobs:
            self.run_job_pre(job)
            self._progress.start(job, time.monotonic())
            if not self._submissions.take_up(job):
                fresh.append(job)
        self._submissions.submit(fresh)

    def run_job(self, job: Any) -> None:
        """Submits one job."""
        self.run_jobs([job])

    def watch(self, submitted: Submitted) -> None:
        """The scheduler has the job."""
        info = SubmittedJobInfo(submitted.job, external_jobid=submitted.id, aux={"submitted": submitted})
        self.report_job_submission(info, register_job=False)

    def refuse(self, job: Any, why: str) -> None:
        """The job was not submitted and has failed."""
        self.report_job_error(SubmittedJobInfo(job), msg=f"{describe(job)} was not submitted: {why}\n")

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancels everything that was submitted and is not over, and what was just being submitted."""
        self._submissions.cancel()

    def shutdown(self) -> None:
        """Ends the polling."""
        super().shutdown()
        self._submissions.close()

    def handle_job_success(self, job: Any) -> None:
        """Notes that the job is over, now that Snakemake has its output, and logs how far the run is."""
        self._submissions.over(job)
        for single in job.jobs if job.is_group() else [job]:
            self.logger.info(self._progress.finish(single, single.rule.name, describe(single), time.monotonic()))

    def handle_job_error(self, job: Any) -> None:
        """Notes that the job is over; what is to be said has been said."""
        self._submissions.over(job)

    async def check_active_jobs(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Reports the jobs that are over, and yields the others."""
        if not self._is_ready:
            return
        jobs: list[Submitted] = [info.aux["submitted"] for info in active_jobs]  # pyright: ignore
        began = time.monotonic()
        finished = _existing(submitted.outcome for submitted in jobs)
        looked = time.monotonic() - began
        states = await self._poll({submitted.id for submitted in jobs if submitted.outcome not in finished})
        if states is not None:
            finished |= _existing(submitted.outcome for submitted in jobs)  # they may have ended while we asked
        for info, submitted in zip(active_jobs, jobs, strict=True):
            if self._submissions.cancelled:
                continue
            if submitted.outcome in finished:
                self._finish(info, submitted)
            elif states is None or not _is_lost(submitted, states):
                yield info
            else:
                self._lose(info, submitted, states)
        if self._submissions.has_waiting:
            await asyncio.to_thread(self._submissions.submit_waiting)  # Snakemake prepares a job by a loop of its own
        pause = min(max(LOOK, IDLE * looked), LONGEST)
        self.next_seconds_between_status_checks = pause  # pyright: ignore[reportIncompatibleMethodOverride]

    async def _poll(self, ids: set[str]) -> Mapping[str, State] | None:
        """The states of those jobs; None where it is not time to ask yet, or nobody answers."""
        backend = self._submissions.backend
        too_early = time.monotonic() - self._polled < min(self._settings.poll, backend.longest_poll)
        if not ids or too_early or self._submissions.cancelled:
            return None
        states = await asyncio.to_thread(backend.states, ids)
        self._polled = time.monotonic()
        return states

    def _finish(self, info: SubmittedJobInfo, submitted: Submitted) -> None:
        """Reports a job that left its outcome."""
        found = json.loads(submitted.outcome.read_text(encoding="utf-8"))
        if found["error"]:
            return self._fail(info, submitted, f"failed: {found['error']}")
        if is_called(submitted.job) and submitted.job.benchmark:
            try:
                _write_benchmark(submitted.job, found, self.workflow.output_settings.benchmark_extended)
            except OSError as error:
                return self._fail(info, submitted, f"has no benchmark: {error}")
        self.report_job_success(info)

    def _lose(self, info: SubmittedJobInfo, submitted: Submitted, states: Mapping[str, State]) -> None:
        """Reports a job that will have no outcome; one that shared its process and had not begun is submitted again."""
        state = states.get(submitted.id)
        if state is not None and state.hopeless:
            self._submissions.backend.cancel([submitted.id])
            return self._fail(info, submitted, f"would wait for ever: SLURM says {state.reason}")
        if submitted.is_process_started and not submitted.is_started:
            return self._submissions.later(submitted.job)
        why = state.end if state is not None else "it ended without a result, and SLURM knows no more of it"
        self._fail(info, submitted, f"is lost: {why}")

    def _fail(self, info: SubmittedJobInfo, submitted: Submitted, what: str) -> None:
        """Reports a job that failed, with the last lines of its log and of what submitit and SLURM wrote."""
        singles = submitted.job.jobs if submitted.job.is_group() else [submitted.job]
        own = [str(path) for job in singles for path in job.log]  # of an earlier run, if it had not begun
        logs = own * (submitted.is_started or submitted.job.is_group()) + [str(path) for path in submitted.streams()]
        name = f"{describe(submitted.job)} (job {submitted.id})"
        self.report_job_error(info, msg=f"{name} {what}\n{tail(logs)}\n")


def _is_lost(submitted: Submitted, states: Mapping[str, State]) -> bool:
    """Whether a job without an outcome will never have one."""
    state = states.get(submitted.id)
    if state is not None and state.hopeless:
        return True
    gone = state is None or bool(state.end)
    submitted.misses = submitted.misses + 1 if gone else 0
    return submitted.misses >= SURE


def _existing(paths: Any) -> set[Path]:
    """Those of the paths that exist: one listing a folder, which also renews what a network file system remembers."""
    paths = set(paths)
    there: dict[Path, set[str]] = {}
    for folder in {path.parent for path in paths}:
        with suppress(OSError):  # a network file system may be away for a while
            there[folder] = set(os.listdir(folder))
    return {path for path in paths if path.name in there.get(path.parent, ())}


def _write_benchmark(job: Any, found: dict[str, Any], extended: bool) -> None:
    record = BenchmarkRecord(running_time=found["seconds"], max_rss=found["max_rss_mb"], cpu_time=found["cpu_seconds"])
    record.data_collected = True
    record.jobid, record.rule_name, record.threads = job.jobid, job.rule.name, job.threads
    record.wildcards, record.params, record.resources = job.wildcards, job.params, job.resources
    record.input = job.input
    write_benchmark_records([record], str(job.benchmark), extended)
