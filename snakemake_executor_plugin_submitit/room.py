"""How many more tasks the scheduler may be given now."""

import sys
import time
from collections.abc import Iterable, Mapping

from .backends import Backend
from .limits import said
from .slurm import NoAnswer

PAUSE = 2.0  # seconds between two attempts, at least
BEHIND = 60.0  # seconds for which a job may not be listed yet


class Room:
    """What is left of the user's limits on what the scheduler has of ours, and of limits that it has told of.

    A task of an array counts as one, however many jobs share it. What has left its result counts until the scheduler
    says that it is over.
    """

    def __init__(self, backend: Backend, limits: Mapping[str, int], pause: float) -> None:
        """`pause`: seconds before the scheduler is asked again where nothing could be submitted."""
        self._backend, self._limits, self._pause = backend, limits, pause
        self._batch = sys.maxsize  # the most tasks at a time; less where the scheduler refused as many
        self._asked = self._look_again = self._again = 0.0
        self._was_refused = False
        self._tasks: dict[str, tuple[float, Mapping[str, int]]] = {}  # by id: since when, and what it takes
        self.why = ""  # there was no more room, where a limit of the user is the reason

    def of(self, tasks: int, takes: Mapping[str, int]) -> int:
        """How many of the tasks there is room for, each of which takes so much of the limits."""
        if time.monotonic() < self._again:
            return 0
        if self._left(takes) < tasks and time.monotonic() >= self._look_again:
            self._forget_those_that_are_over()
        return max(0, min(tasks, self._batch, self._left(takes)))

    def has(self, ids: Iterable[str], takes: Mapping[str, int]) -> None:
        """Notes tasks that the scheduler has, or may have, and what each of them takes of the limits."""
        now = time.monotonic()
        self._tasks |= {one: (self._tasks[one][0] if one in self._tasks else now, takes) for one in ids}

    def took(self, ids: Iterable[str], takes: Mapping[str, int]) -> None:
        """Notes what was submitted just now."""
        self.has(ids, takes)
        self._batch, self._was_refused = self._batch * 2, False

    def refused(self, tasks: int) -> bool:
        """Whether so many tasks, which a limit refused, may be submitted later, or in smaller parts.

        A single one may not if it was refused twice while nothing of this user was in the queue.
        """
        if tasks > 1:
            self._batch = tasks // 2
            return True
        self._batch = 1
        try:
            if self._backend.in_queue() > 0:
                self._was_refused = False
                self._wait(self._pause)
                return True
        except NoAnswer:
            self._wait(self._pause)
            return True
        self._was_refused = not self._was_refused  # the last one may have ended in between
        self._wait(PAUSE * self._was_refused)
        return self._was_refused

    def one_ended(self) -> None:
        """Lets the next attempt be soon: there may be room now."""
        soon = self._asked + PAUSE
        self._again, self._look_again = min(self._again, soon), min(self._look_again, soon)

    def _left(self, takes: Mapping[str, int]) -> int:
        """How many more such tasks the user's limits allow."""
        left = {name: (self._limits[name] - self._used(name)) // each for name, each in takes.items() if each}
        least = min(left, key=left.__getitem__, default="")
        self.why = "" if left.get(least, 1) > 0 else f"SLURM has all that {said(least, self._limits[least])} allows"
        return left.get(least, sys.maxsize)

    def _used(self, name: str) -> int:
        return sum(takes.get(name, 0) for _, takes in self._tasks.values())

    def _wait(self, seconds: float) -> None:
        self._asked = time.monotonic()
        self._again = self._asked + seconds

    def _forget_those_that_are_over(self) -> None:
        self._asked = time.monotonic()
        self._look_again = self._asked + self._pause
        try:
            states = self._backend.states(self._tasks) if self._tasks else {}
        except NoAnswer as error:
            return self._backend.tell(str(error))
        late = time.monotonic() - BEHIND
        self._tasks = {
            one: known
            for one, known in self._tasks.items()
            if (not states[one].end if one in states else known[0] > late)
        }
