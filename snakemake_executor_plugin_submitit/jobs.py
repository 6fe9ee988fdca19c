"""What a job of Snakemake is for the scheduler: a call of a stage or a Snakemake of its own, its name, its comment."""

import re
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_forkserver.report import describe, has_stage

from .resources import require_known

COMMENT = 200  # characters


def is_called(job: Any) -> bool:
    """Whether the job is a stage that the process of the SLURM job calls itself.

    Shadow folders, conda, containers and environment modules, repeated benchmarks and results that workflows share
    (`cache`) are things that only a Snakemake of the job's own makes.
    """
    if not has_stage(job) or job.is_shadow or (job.benchmark_repeats or 1) > 1 or _is_cached(job):
        return False
    return not job.rule.workflow.deployment_settings.deployment_method


def _is_cached(job: Any) -> bool:
    """Whether --cache is given, with a place for the cache, and the rule says that its results may be shared."""
    is_on = job.rule.workflow.output_file_cache is not None
    return is_on and job.rule.cache is not None and job.rule.cache.output


def limited(job: Any) -> set[str]:
    """The resources that the user limits by `--resources`, and that therefore may have any name."""
    first = next(iter(job.jobs)) if job.is_group() else job
    return set(first.rule.workflow.global_resources)


def require_known_resources(jobs: Iterable[Any]) -> None:
    """WorkflowError for a rule with a resource that would be ignored, before any job is submitted."""
    rules = {job.rule.name: job for job in jobs if not job.is_local}
    for name, job in rules.items():
        try:
            require_known(list(job.rule.resources), limited(job))
        except ValueError as error:
            raise WorkflowError(f"rule {name}: {error}") from error


def batch_name(job: Any, config: dict[str, Any]) -> str:
    """A name that no other submission has: the rule, the run where the configuration names one, and a number."""
    name = config.get("run")
    run = re.sub(r"[^A-Za-z0-9_-]+", "_", name) if isinstance(name, str) else ""
    return ".".join(part for part in (job.name, run, uuid.uuid4().hex[:8]) if part)


def comment(jobs: Sequence[Any]) -> str:
    """What `squeue --format=%k` is to say of them: the first one, and how many others."""
    first = re.sub(r"[^\x20-\x7e]", "?", describe(jobs[0]))[:COMMENT]
    return f"{first} and {len(jobs) - 1} more" if len(jobs) > 1 else first
