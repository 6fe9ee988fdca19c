"""Snakemake's local executor, except that rules with params.stage run in warm processes."""

import signal
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from logging import LogRecord
from threading import current_thread, main_thread
from typing import Any

from snakemake.benchmark import BenchmarkRecord, benchmarked, write_benchmark_records
from snakemake.exceptions import SpawnedJobError
from snakemake.executors.local import Executor as LocalExecutor
from snakemake.executors.local import common_settings
from snakemake.logging import ColorizingTextHandler
from snakemake.settings.enums import Quietness
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.settings import ExecutorSettingsBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_executor_plugin_submitit.beside import hold_free

from .payload import payload
from .processes import Processes, end_children
from .progress import Progress
from .report import describe, failure, has_stage, tell
from .sharing import Sharing

__all__ = ["Executor", "ExecutorSettings", "common_settings"]


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """Settings of the executor: `--forkserver-preload` or `forkserver-preload:` in a profile."""

    preload: str = field(
        default="",
        metadata={"help": "Modules, separated by commas, to import once for all jobs of rules with params.stage."},
    )
    jobs_per_gpu: int = field(
        default=1,
        metadata={
            "help": "How many jobs of rules with params.stage and `gpus: 1` may use one GPU of this machine at a time, "
            "where the rule does not say by `gpu_mem_mb` how much of it a job needs. Each sees the GPUs alone that it "
            "was given, and none where its rule asks for none."
        },
    )

    def __post_init__(self) -> None:
        """WorkflowError where no job could ever have a GPU."""
        if self.jobs_per_gpu < 1:
            raise WorkflowError(f"got --forkserver-jobs-per-gpu {self.jobs_per_gpu}, expected at least 1")


class Executor(LocalExecutor):
    """Runs rules with params.stage in processes of a fork server, any other as the local executor does."""

    dag: Any  # Snakemake's interfaces declare less than it passes
    workflow: Any
    executor_settings: Any
    logger: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        self._quieten()
        jobs = list(self.dag.needrun_jobs())
        self._free = hold_free(jobs)
        self._progress = Progress(Counter(job.rule.name for job in jobs))
        names = (name.strip() for name in self.executor_settings.preload.split(","))
        self._processes = Processes([name for name in names if name])
        self._sharing = Sharing(self.workflow, self.executor_settings.jobs_per_gpu, self.logger.info)
        self._sharing.begin(jobs)
        self._causes: dict[Any, str] = {}  # of failed jobs that Snakemake has not asked about yet
        self._warm: Future[None] | None = None
        if any(has_stage(job) for job in jobs):
            self._warm_up()  # in the background, while Snakemake prepares the first job

    def run_jobs(self, jobs: list[Any]) -> None:
        """Starts the jobs."""
        if current_thread() is main_thread():
            # Snakemake would let running jobs end, which may take hours: SIGTERM is to be as prompt as Ctrl-C
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        super().run_jobs(jobs)

    def run_single_job(self, job: Any) -> Future[None]:
        """The future end of the job."""
        forked = has_stage(job) and not job.is_shadow
        forked = forked and not self.workflow.deployment_settings.deployment_method
        self._sharing.tell_of(job)
        if forked:
            self._wait_until_warm()
        self._progress.start(job, time.monotonic())
        if not forked:
            return super().run_single_job(job)
        self.workflow.async_run(job.prepare())
        return self.pool.submit(self.cached_or_run, job, self._run_stage, job)

    def handle_job_success(self, job: Any) -> None:
        """Logs how far the run is."""
        for single in _singles(job):
            line = self._progress.finish(single, single.rule.name, describe(single), time.monotonic())
            self.logger.info(line)

    def print_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **kwargs: Any) -> None:
        """Logs what failed; Snakemake does the same afterwards, unless it is to be quiet about rules."""
        whole, singles = job_info.job, _singles(job_info.job)
        causes = {job: self._causes.pop(job) for job in singles if job in self._causes}
        if not causes and self._is_quiet:
            causes = {whole: "the error is above"}
        for job, why in causes.items():
            logs = [str(log) for single in _singles(job) for log in single.log]
            tell(self.logger, self.workflow.output_settings.quiet, failure(describe(job), why, logs))
        super().print_job_error(job_info, msg, **kwargs)

    def cancel(self) -> None:
        """Ends all jobs; stages are interrupted first, so that they remove what they have half written."""
        self._processes.stop()
        end_children()  # those of other rules, and the fork server
        super().cancel()

    @property
    def _is_quiet(self) -> bool:
        return Quietness.RULES in (self.workflow.output_settings.quiet or ())

    def _quieten(self) -> None:
        """Drops the lines about each round of scheduling, if Snakemake is to be quiet about rules."""
        for handler in self.logger.handlers:
            if isinstance(handler, ColorizingTextHandler) and self._is_quiet:
                handler.addFilter(_is_news)

    def _warm_up(self) -> Future[None]:
        """The future end of the imports."""
        self._warm = self._warm or self.pool.submit(self._processes.check_imports)
        return self._warm

    def _wait_until_warm(self) -> None:
        """Returns when the imports are done; WorkflowError, which ends the run, if one fails."""
        try:
            self._warm_up().result()
        except ValueError as error:
            raise WorkflowError(str(error)) from error

    def _run_stage(self, job: Any) -> None:
        """Runs the job's stage, as often as its benchmark wants; SpawnedJobError if it fails."""
        records = [BenchmarkRecord() for _ in range(job.benchmark_repeats or 1)]
        for record in records:
            measured = partial(benchmarked, benchmark_record=record) if job.benchmark else nullcontext
            try:
                with self._sharing.lent(job) as (gpus, environment):
                    code, error = self._processes.run(payload(job, gpus), measured, environment)
            except ValueError as error:
                raise WorkflowError(f"{describe(job)}: {error}") from error
            if code and self._processes.stopped:
                raise KeyboardInterrupt  # Snakemake is ending: this is no failure of the job
            if code:
                self._causes[job] = error or _end(code)
                raise SpawnedJobError()  # Snakemake then says nothing of its own, and calls print_job_error
        if job.benchmark:
            self._write_benchmark(job, records)

    def _write_benchmark(self, job: Any, records: list[BenchmarkRecord]) -> None:
        for record in records:
            record.jobid, record.rule_name, record.threads = job.jobid, job.rule.name, job.threads
            record.wildcards, record.params, record.resources = job.wildcards, job.params, job.resources
            record.input = job.input
        write_benchmark_records(records, str(job.benchmark), self.workflow.output_settings.benchmark_extended)


def _singles(job: Any) -> list[Any]:
    """The jobs of a group, or the one job."""
    return list(job.jobs) if job.is_group() else [job]


def _is_news(record: LogRecord) -> bool:
    """False for what Snakemake says in each round of scheduling, with every setting of quiet but `all`."""
    return record.msg != "Select jobs to execute..." and getattr(record, "event", None) != LogEvent.JOB_STARTED


def _end(code: int) -> str:
    """How a process ended that raised nothing."""
    if code > 0:
        return f"it ended with exit code {code}"
    return f"it was killed by signal {-code}{' (out of memory?)' if code == -signal.SIGKILL else ''}"
