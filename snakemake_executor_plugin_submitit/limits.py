"""What the user limits: `jobs`, and resources by --resources. Here it is counted by task of the scheduler.

Snakemake would count each job of a bundle, and let one more in whenever one ends: bundles would soon be single jobs.
"""

from collections.abc import Mapping
from typing import Any

JOBS = "_nodes"  # Snakemake's name of what `jobs` limits


def take_over(workflow: Any) -> dict[str, int]:
    """The limits by resource, which Snakemake does not count any more for jobs that are submitted."""
    limits = {name: limit.value for name, limit in workflow.global_resources.items() if name != "_cores"}
    is_local = workflow.resource_scopes.is_local
    found = {name: limit for name, limit in limits.items() if isinstance(limit, int) and not is_local(name)}
    workflow.resource_scopes.update(dict.fromkeys(found, "local"))
    return found


def takes(job: Any, limits: Mapping[str, int]) -> dict[str, int]:
    """How much a task of the job takes of each limit. Raises ValueError where that is no number."""
    return {name: 1 if name == JOBS else int(job.resources.get(name) or 0) for name in limits}


def said(name: str, limit: int) -> str:
    """The limit as a user sets it."""
    return f"jobs: {limit}" if name == JOBS else f"--resources {name}={limit}"
