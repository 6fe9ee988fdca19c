"""Runs the stage that `params.stage` of a rule names, under any executor of Snakemake."""

from typing import Any

from fusion.job import run
from snakemake_executor_plugin_forkserver.payload import payload
from snakemake_executor_plugin_forkserver.worker import limit_threads, redirect

snakemake: Any = globals()["snakemake"]  # Snakemake puts it there when a rule says `script:`
job = payload(snakemake)
limit_threads(job.threads)
redirect(job.log)
run(job)
