"""Jobs that are not submitted yet: they go as there is room for them, and as their bundles fill."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .backends import Full
from .bundles import Bundles, Waiting, alike
from .room import Room
from .voice import Voice


class NotNow(Exception):
    """Why jobs cannot be submitted now, and may be soon."""


class Held:
    """The jobs that wait.

    most: the most tasks of an array. send: submits bundles as one; it raises Full, or NotNow with the reason. fail: is
    told of a job that will not be submitted, and why.
    """

    def __init__(
        self,
        bundles: Bundles,
        room: Room,
        most: int,
        send: Callable[[Sequence[Sequence[Waiting]]], None],
        fail: Callable[[Any, str], None],
        voice: Voice,
    ) -> None:
        self._bundles, self._room, self._most = bundles, room, most
        self._send, self._fail, self._voice = send, fail, voice
        self._jobs: list[Waiting] = []
        self._failed: set[Any] = set()
        self._filling = 0  # how many wait for their bundle alone
        self._why = ""  # the others wait, where a limit is the reason

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, jobs: Iterable[Waiting]) -> None:
        """Lets more jobs wait."""
        new = list(jobs)
        self._failed -= {one.job for one in new}
        self._jobs += new

    def submit(self) -> None:
        """Submits the jobs that can go now."""
        waiting, self._jobs, self._filling = self._jobs, [], 0
        for same in alike(waiting):
            self._submit_alike(same)
        if len(self._jobs) == self._filling:
            self._why = ""

    def refuse(self, jobs: Iterable[Any], error: Exception) -> None:
        """Gives up jobs that cannot be submitted at all."""
        for job in jobs:
            self._failed.add(job)
            self._fail(job, str(error))

    def words(self) -> list[str]:
        """How many jobs wait for what, as a user reads it."""
        others = len(self._jobs) - self._filling
        found = [f"{others} not submitted yet" + f" ({self._why})" * bool(self._why)] if others else []
        return found + [f"{self._filling} waiting for their bundles to fill"] * bool(self._filling)

    def _submit_alike(self, same: Sequence[Waiting]) -> None:
        """Submits jobs with equal needs; what there is no room for, and what others may join, waits on."""
        bundles, filling = self._bundles.split(same, time.monotonic())
        if filling:
            self._tell_of(filling[0])
        while bundles and (tasks := self._room.of(min(self._most, len(bundles)), same[0].takes)):
            part, bundles = bundles[:tasks], bundles[tasks:]
            try:
                self._send(part)
                continue
            except NotNow as error:
                self._why, is_over = str(error), True
            except Full as error:
                if not self._room.refused(tasks):
                    self.refuse((one.job for task in part for one in task), error)
                    continue
                self._why, is_over = str(error), False
                self._voice.once(f"SLURM takes no more jobs for now ({error}); the others follow as these end")
            left = [[one for one in task if one.job not in self._failed] for task in part]
            bundles = [*filter(None, left), *bundles]
            if is_over:
                break
        if bundles:
            self._why = self._room.why or self._why
        self._jobs += [one for task in [*bundles, filling] for one in task]
        self._filling += len(filling)

    def _tell_of(self, first: Waiting) -> None:
        wait = f"wait for others, {self._bundles.wait:g} s at most"
        self._voice.once(
            f"jobs of {first.job.rule.name} {wait}, to share a SLURM job by {first.size} (bundle, submitit-bundle-wait)"
        )
