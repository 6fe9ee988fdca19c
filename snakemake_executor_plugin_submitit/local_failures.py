"""Failures of the rules that run beside Snakemake itself, which `quiet: rules` would hide."""

import logging
import socket
from typing import Any

from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_executor_plugin_forkserver.report import describe, failure, has_stage

from .voice import Voice


class LocalFailures(logging.Handler):
    """Hears what Snakemake says of failed jobs, and tells of the local ones by our voice.

    A stage says why it failed itself, and where it was killed, its log may not even say that.
    """

    def __init__(self, dag: Any, voice: Voice) -> None:
        super().__init__()
        self._dag, self._voice = dag, voice

    def emit(self, record: logging.LogRecord) -> None:
        """Tells of a failed job if it is a local one."""
        if getattr(record, "event", None) is not LogEvent.JOB_ERROR:
            return
        number = getattr(record, "jobid", None)
        for job in self._dag.needrun_jobs():
            if job.is_local and self._dag.jobid(job) == number:
                self._tell(job)

    def _tell(self, job: Any) -> None:
        logs = [str(log) for log in job.log]
        if has_stage(job):
            where = f"its log is {logs[0]}" if logs else "it has no log"
            why = "the reason is above, unless its process was killed (out of memory?)"
            self._voice.fail(f"{describe(job)} failed on {socket.gethostname()}, which is this host: {why}; {where}")
        else:
            self._voice.fail(failure(describe(job), "its command is above", logs))
