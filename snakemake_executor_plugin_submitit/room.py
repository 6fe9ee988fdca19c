"""How many more jobs the scheduler may be given now."""

import sys
import time
from collections.abc import Iterable

from .backends import Backend
from .slurm import NoAnswer

PAUSE = 2.0  # seconds between two attempts, at least
BEHIND = 60.0  # seconds for which a job may not be listed yet


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
        self._was_refused = False
        self._since: dict[str, float] = {}  # by id, when it was submitted or found

    def of(self, tasks: int) -> int:
        """How many of the tasks there is room for."""
        if time.monotonic() < self._again:
            return 0
        if len(self._since) + tasks > self._most:
            self._forget_those_that_are_over()
        return max(0, min(tasks, self._batch, self._most - len(self._since)))

    def has(self, ids: Iterable[str]) -> None:
        """Notes jobs that the scheduler has, or may have."""
        self._since |= dict.fromkeys(ids, time.monotonic())

    def took(self, ids: Iterable[str]) -> None:
        """Notes what was submitted just now."""
        self.has(ids)
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
        self._again = min(self._again, self._asked + PAUSE)

    def _wait(self, seconds: float) -> None:
        self._asked = time.monotonic()
        self._again = self._asked + seconds

    def _forget_those_that_are_over(self) -> None:
        try:
            states = self._backend.states(self._since) if self._since else {}
        except NoAnswer as error:
            self._backend.tell(str(error))
            return self._wait(self._pause)
        late = time.monotonic() - BEHIND
        self._since = {
            one: since for one, since in self._since.items() if (not states[one].end if one in states else since > late)
        }
        if len(self._since) >= self._most:
            self._wait(self._pause)
