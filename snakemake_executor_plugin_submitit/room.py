"""How many more jobs the scheduler may be given now."""

import sys
import time
from collections.abc import Iterable

from .backends import Backend
from .slurm import NoAnswer

PAUSE = 2.0  # seconds between two attempts, at least


class Room:
    """What is left of `jobs`, which is the most that the scheduler has of ours, and of limits that it has told of.

    What has left its result counts until the scheduler says that it is over.
    """

    def __init__(self, backend: Backend, most: int, pause: float) -> None:
        """`pause`: seconds before the scheduler is asked again where nothing could be submitted."""
        self._backend, self._pause = backend, pause
        self._most = most if backend.is_slow else sys.maxsize
        self._batch = sys.maxsize  # the most tasks at a time; less where the scheduler refused as many
        self._asked = self._again = 0.0
        self._ids: set[str] = set()

    def of(self, tasks: int) -> int:
        """How many of the tasks there is room for."""
        if time.monotonic() < self._again:
            return 0
        if len(self._ids) + tasks > self._most:
            self._forget_those_that_are_over()
        return min(tasks, self._batch, self._most - len(self._ids))

    def take(self, ids: Iterable[str]) -> None:
        """Notes what was submitted."""
        self._ids |= set(ids)
        self._batch *= 2

    def refused(self, tasks: int) -> bool:
        """Whether so many tasks, which a limit refused, may be submitted later, or in smaller parts."""
        if tasks > 1:
            self._batch = tasks // 2
            return True
        self._batch = 1
        self._wait()
        try:
            return self._backend.in_queue() > 0
        except NoAnswer:
            return True

    def one_ended(self) -> None:
        """Lets the next attempt be soon: there may be room now."""
        self._again = min(self._again, self._asked + PAUSE)

    def _wait(self) -> None:
        self._asked = time.monotonic()
        self._again = self._asked + self._pause

    def _forget_those_that_are_over(self) -> None:
        try:
            states = self._backend.states(self._ids) if self._ids else {}
        except NoAnswer as error:
            self._backend.tell(str(error))
            return self._wait()
        self._ids = {one for one in self._ids if one in states and not states[one].end}
        if len(self._ids) >= self._most:
            self._wait()
