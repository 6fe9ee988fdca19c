"""Snakemake's remote executor by submitit: batches of ready jobs in, one poll for all of them, results out."""

import asyncio
import os
import signal
import time
import warnings
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

from snakemake_executor_plugin_forkserver.processes import end_children
from snakemake_executor_plugin_forkserver.progress import Progress
from snakemake_executor_plugin_forkserver.report import describe

from . import outcome
from .batches import Submitted
from .endings import Endings
from .jobs import require_known_resources
from .local_failures import LocalFailures
from .polling import Polling
from .runner import PYTHON
from .settings import ExecutorSettings, common_settings
from .submissions import Submissions
from .voice import Voice

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

# of Snakemake, which asks in vain for the size of inputs while it plans
warnings.filterwarnings("ignore", r"coroutine 'InputFiles\._predicated", RuntimeWarning)
LOOK = 0.3  # seconds between two looks at the results, which are files, at least
IDLE, LONGEST = 30, 3.0  # times as long as looking took, where that is longer, and at most so many seconds


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
        self.voice = Voice(self.logger, self.workflow.output_settings.quiet, self._settings.report)
        self.logger.addHandler(LocalFailures(self.dag, self.voice))
        self._own_job = os.environ.get("SLURM_JOB_ID", "")
        needed = list(self.dag.needrun_jobs())
        self._submissions = Submissions(self, self._settings, needed)
        latency = float(self.workflow.execution_settings.latency_wait)
        self._polling = Polling(self._submissions, self._settings, latency, self.voice)
        self._progress = Progress(Counter(job.rule.name for job in needed))
        self._endings = Endings(self, self._submissions, self.voice)
        self._is_ready = True

    def additional_general_args(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What a Snakemake in a job is given: it runs the job there and then."""
        is_for_all = self.workflow.workflow_settings.cache == []  # which Snakemake itself does not pass on
        return "--executor local --quiet all" + " --cache" * is_for_all

    def get_python_executable(self) -> str:
        """The Python of such a Snakemake: that of the job."""
        return f'"${PYTHON}"'

    def run_jobs(self, jobs: list[Any]) -> None:
        """Takes up the jobs that are submitted already, and submits the others: those with equal needs together."""
        if current_thread() is main_thread():
            # Snakemake would let running jobs end, which may take days: SIGTERM is to be as prompt as Ctrl-C
            signal.signal(signal.SIGTERM, self._terminate)
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
        self.voice.fail(f"{describe(job)} was not submitted: {why}")
        self.report_job_error(SubmittedJobInfo(job))

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancels everything that was submitted and is not over, and what was just being submitted."""
        if not self._submissions.cancelled:
            self._submissions.cancel()

    def cancel(self) -> None:
        """The same, and ends the local rules at work, whose ends Snakemake would await."""
        super().cancel()
        end_children()

    def shutdown(self) -> None:
        """Ends the polling."""
        super().shutdown()
        self._submissions.close()

    def handle_job_success(self, job: Any) -> None:
        """Notes that the job is over, now that Snakemake has its output, and says how far the run is."""
        self._submissions.over(job)
        for single in job.jobs if job.is_group() else [job]:
            self.voice.say(self._progress.finish(single, single.rule.name, describe(single), time.monotonic()))

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
        ended, away = outcome.read_all(submitted.outcome for submitted in jobs)
        looked = time.monotonic() - began
        states = await self._polling.ask({submitted.id for submitted in jobs if submitted.outcome not in ended})
        if states is not None:  # they may have ended while we asked
            ended, away = outcome.read_all(submitted.outcome for submitted in jobs)
        for folder, why in away.items():
            self.voice.once(f"{folder} cannot be read now ({why}); waiting for it")
        for info, submitted in zip(active_jobs, jobs, strict=True):
            if self._submissions.cancelled:
                continue
            try:
                if submitted.outcome in ended:
                    self._endings.finish(info, submitted, ended[submitted.outcome])
                elif states is None or submitted.outcome.parent in away or await self._polling.lives(submitted, states):
                    yield info
                else:
                    self._endings.lose(info, submitted, states.get(submitted.id))
            except OSError as error:  # of a file system that is away
                self.voice.once(f"{describe(submitted.job)}: {error}; trying again")
                yield info
        if self._submissions.held:
            await asyncio.to_thread(self._submit_waiting)  # Snakemake prepares a job by a loop of its own
        self._tell_what_is_waited_for(jobs)
        pause = min(max(LOOK, IDLE * looked), LONGEST)
        self.next_seconds_between_status_checks = pause  # pyright: ignore[reportIncompatibleMethodOverride]

    def _submit_waiting(self) -> None:
        """Submits what waits; without `keep-going`, ends the run once a job has failed and no other is at work."""
        held, scheduler = len(self._submissions.held), self.workflow.scheduler
        if self.workflow.execution_settings.keep_going or not scheduler.failed:
            self._submissions.submit_waiting()
        elif len(scheduler.running) <= held:
            text = f"a job has failed; {held} others were not submitted: --keep-going goes on with them"
            scheduler.executor_error_callback(WorkflowError(text))

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """Ends as by Ctrl-C; in a SLURM job, whose own end this is, the jobs go on."""
        if self._own_job and self._submissions.backend.is_slow:
            left = self._submissions.leave()
            text = f"the SLURM job {self._own_job} of this Snakemake ends; its {left} jobs stay where they are"
            self.voice.say(f"{text}, and the same command goes on with them")
        raise KeyboardInterrupt

    def _tell_what_is_waited_for(self, jobs: Sequence[Submitted]) -> None:
        told = ((describe(one.job), one.batch.time, self._polling.states.get(one.id)) for one in jobs)
        self.voice.wait(told, self._submissions.held.words())
