"""What the jobs of a rule ask a scheduler for, from what they are reckoned to take; functions that Snakemake calls."""

from collections.abc import Callable
from math import ceil, inf
from typing import Any

from fusion.estimate.jobs import Jobs
from fusion.estimate.work import Work

MEMORY, MEMORY_STEP = 1.5, 500  # times the model's figure; MB, so that jobs that are nearly alike ask for the same
TIME, SPARE, SHORTEST = 3, 10, 30  # times the model's figure; minutes beside it; the least limit, which doubles
DISK, LEAST_DISK = 1.5, 1000  # times the model's figure; MB, Snakemake's own least


class Asked:
    """Resources of rules, as functions of a job's wildcards; where a fact is unknown, a figure that is given."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs

    def memory(self, rule: str, otherwise: int) -> Callable[..., int]:
        """mem_mb: of the host, more at every attempt."""

        def mem_mb(wildcards: Any, attempt: int) -> int:
            work = self.work(rule, wildcards)
            needed = MEMORY * self.jobs.rates.host_bytes(work) / 1e6
            return attempt * (otherwise if work.unknown else ceil(needed / MEMORY_STEP) * MEMORY_STEP)

        return mem_mb

    def minutes(
        self, rule: str, otherwise: int, bundle: int | Callable[[Any], int] = 1, most: float = inf
    ) -> Callable[[Any], int]:
        """runtime: of as many jobs as share one job of the scheduler; most: of what goes on where it was."""

        def runtime(wildcards: Any) -> int:
            if self.work(rule, wildcards).unknown:
                return otherwise
            count = bundle if isinstance(bundle, int) else bundle(wildcards)
            needed = SPARE + TIME * count * self.jobs.seconds(rule, dict(wildcards.items())) / 60
            limit = SHORTEST
            while limit < min(needed, most):
                limit *= 2
            return int(min(limit, most))

        return runtime

    def disk(self, rule: str) -> Callable[[Any], int]:
        """disk_mb: of the models that a job reads, and of what it writes, as far as it is known."""

        def disk_mb(wildcards: Any) -> int:
            work = self.work(rule, wildcards)
            return max(LEAST_DISK, ceil(DISK * (work.read + work.written) / 1e6))

        return disk_mb

    def work(self, rule: str, wildcards: Any) -> Work:
        """What one job does."""
        return self.jobs.work(rule, dict(wildcards.items()))
