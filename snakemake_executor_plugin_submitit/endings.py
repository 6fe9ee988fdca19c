"""How the ends of jobs are told: to Snakemake, and to the user."""

import math
from typing import Any, Protocol

from snakemake.benchmark import BenchmarkRecord, write_benchmark_records
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from snakemake_executor_plugin_forkserver.report import describe, tail

from . import outcome
from .batches import Submitted
from .causes import causes
from .jobs import is_called
from .outcome import Damaged, Outcome
from .slurm import State
from .submissions import Submissions
from .voice import Voice
from .whole import is_whole, set_aside


class Host(Protocol):
    """What is told of a job's end."""

    workflow: Any

    def report_job_success(self, job_info: SubmittedJobInfo) -> None:
        """The job has ended well."""
        ...

    def report_job_error(self, job_info: SubmittedJobInfo) -> None:
        """The job has failed."""
        ...


class Endings:
    """Reports jobs that are over."""

    def __init__(self, host: Any, submissions: Submissions, voice: Voice) -> None:
        self._host: Host = host
        self._submissions, self._voice = submissions, voice

    def finish(self, info: SubmittedJobInfo, submitted: Submitted, ended: Outcome) -> None:
        """Reports a job that left its outcome."""
        if ended.error:
            return self._fail(info, submitted, "failed", ended.error, ended.host)
        if is_called(submitted.job) and submitted.job.benchmark:
            try:
                _write_benchmark(submitted.job, ended, self._host.workflow.output_settings.benchmark_extended)
            except OSError as error:
                return self._fail(info, submitted, "failed", f"its benchmark cannot be written: {error}", ended.host)
        self._host.report_job_success(info)

    def lose(self, info: SubmittedJobInfo, submitted: Submitted, state: State | None) -> None:
        """Reports a job that will have no outcome, or submits it again where that is no fault of the job."""
        name = f"{describe(submitted.job)} (job {submitted.id})"
        if state is not None and state.hopeless:
            self._submissions.backend.cancel([submitted.id])
            return self._fail(info, submitted, "would wait for ever", f"SLURM says {state.reason}")
        if is_whole(submitted.job):
            self._voice.say(f"{name} left no outcome that can be read, and what it made is whole: it counts as done")
            return self.finish(info, submitted, Outcome("", submitted.host, submitted.seconds, math.nan, math.nan))
        why = state.end if state is not None else "it ended without a result, and SLURM knows no more of it"
        if submitted.life.taken_up and not submitted.life.was_alive:
            self._voice.say(f"{name} ended while nobody looked ({why}); it is submitted again")
            return self._submissions.later(submitted.job)
        cancelled = state is not None and state.name == "CANCELLED"
        if submitted.is_process_started and not submitted.is_started and not cancelled:
            self._voice.say(f"{name} had not begun when the process that it shared ended; it is submitted again")
            return self._submissions.later(submitted.job)
        kept = set_aside(submitted.job) if state is None or state.name == "COMPLETED" else []
        aside = f"; it may have ended well, so that what it made was moved to {', '.join(kept)}" if kept else ""
        self._fail(info, submitted, "is lost", f"{_damage(submitted) or why}{aside}")

    def _fail(self, info: SubmittedJobInfo, submitted: Submitted, what: str, why: str, host: str = "") -> None:
        """Reports a job that failed, with the last lines of its log and of what submitit and SLURM wrote."""
        singles = submitted.job.jobs if submitted.job.is_group() else [submitted.job]
        own = [str(path) for job in singles for path in job.log]  # of an earlier run, if it had not begun
        logs = own * (submitted.is_started or submitted.job.is_group()) + [str(path) for path in submitted.streams()]
        said = "".join(f"    {line}\n" for line in causes(submitted.streams(), dict(submitted.job.resources.items())))
        where = f" on {host or submitted.host}" if host or submitted.host else ""
        self._voice.fail(f"{describe(submitted.job)} {what}{where} (job {submitted.id}): {why}\n{said}{tail(logs)}")
        self._host.report_job_error(info)


def _damage(submitted: Submitted) -> str:
    """Why the outcome cannot be read; '' where there is none."""
    try:
        outcome.read(submitted.outcome)
    except Damaged as error:
        return str(error)
    return ""


def _write_benchmark(job: Any, found: Outcome, extended: bool) -> None:
    record = BenchmarkRecord(running_time=found.seconds, max_rss=found.max_rss_mb, cpu_time=found.cpu_seconds)
    record.data_collected = True
    record.jobid, record.rule_name, record.threads = job.jobid, job.rule.name, job.threads
    record.wildcards, record.params, record.resources = job.wildcards, job.params, job.resources
    record.input = job.input
    write_benchmark_records([record], str(job.benchmark), extended)
