"""Which of the jobs that wait go together: in one array, or one after another in one task of it."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .batches import key


@dataclass(frozen=True)
class Waiting:
    """A job that is to be submitted.

    wanted: submitit's parameters; size: how many jobs like it share a task; takes: what a task takes of each limit;
    since: seconds of `time.monotonic`.
    """

    job: Any
    wanted: Mapping[str, Any]
    size: int
    takes: Mapping[str, int]
    since: float = field(default_factory=time.monotonic)

    @cached_property
    def needs(self) -> str:
        """What is equal for jobs that go together."""
        return repr((self.job.name, self.wanted, self.size, self.takes))


def alike(waiting: Iterable[Waiting]) -> list[list[Waiting]]:
    """Jobs with equal needs together, the highest priority first, and then the longest wait."""
    groups: dict[str, list[Waiting]] = defaultdict(list)
    for one in sorted(waiting, key=lambda one: (-one.job.priority, one.since)):
        groups[one.needs].append(one)
    return list(groups.values())


class Bundles:
    """Fills tasks with jobs. What is no full bundle waits for others, as long as its rule has more to come.

    wait: seconds after which it goes as it is; needed: the jobs of this run.
    """

    def __init__(self, wait: float, needed: Iterable[Any] = ()) -> None:
        self.wait = wait
        self._to_come: dict[str, set[str]] = defaultdict(set)  # by rule
        for job in needed:
            self._to_come[job.rule.name].add(key(job))

    def came(self, job: Any) -> None:
        """Notes that Snakemake has handed the job over."""
        for single in job.jobs if job.is_group() else [job]:
            self._to_come[single.rule.name].discard(key(single))

    def split(self, same: Sequence[Waiting], now: float) -> tuple[list[Sequence[Waiting]], Sequence[Waiting]]:
        """Of jobs with equal needs the bundles that go now, and the jobs that wait for others."""
        size = same[0].size
        bundles = [same[first : first + size] for first in range(0, len(same), size)]
        if self._may_fill(bundles[-1], now):
            return bundles[:-1], bundles[-1]
        return bundles, []

    def _may_fill(self, bundle: Sequence[Waiting], now: float) -> bool:
        first = bundle[0]
        if len(bundle) == first.size or not self._to_come[first.job.rule.name]:
            return False
        return now - min(one.since for one in bundle) < self.wait
