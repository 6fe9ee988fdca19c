"""Runs the stage that `params.stage` of a rule names, under any executor of Snakemake."""

import os
import sys
import traceback
from typing import Any

from fusion.job import run
from snakemake_executor_plugin_forkserver.payload import payload
from snakemake_executor_plugin_forkserver.report import call, cause, failure
from snakemake_executor_plugin_forkserver.worker import limit_threads, redirect
from snakemake_executor_plugin_submitit import gpus

snakemake: Any = globals()["snakemake"]  # Snakemake puts it there when a rule says `script:`
job = payload(snakemake, gpus.given(snakemake.resources))
limit_threads(job.threads)
terminal = redirect(job.log)
try:
    run(job)
except Exception as error:
    traceback.print_exc()
    # Snakemake says that a command failed; which one, and why, it says only where it is not quiet about rules
    words = failure(call(snakemake.rule, job.wildcards), cause(error), [job.log] if job.log else [])
    os.write(terminal, f"{words}\n".encode())
    sys.exit(1)
