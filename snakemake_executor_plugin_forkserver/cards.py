"""Which GPU of this machine a job may use, alone or beside others that fit. Imports neither Snakemake nor torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Condition

from .machine import VISIBLE, WHOLE


def share(wanted: int, memory: int, jobs: int) -> int:
    """How many thousandths of a GPU a job has, of each that it asks for.

    wanted: MB of a GPU's memory that the job says it needs, 0 where it says nothing; memory: MB that a GPU has, 0 where
    that is not known; jobs: how many that say nothing may use one GPU.
    """
    if not wanted or not memory:
        return WHOLE // jobs
    return min(WHOLE, max(1, WHOLE * wanted // memory))


class Cards:
    """GPUs that are lent to jobs, in the order in which these ask; may be asked by several threads."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self._room = list(names), dict.fromkeys(names, WHOLE)
        self._asked = self._served = 0  # jobs
        self._changed = Condition()

    @contextmanager
    def lent(self, count: int, share: int = WHOLE) -> Iterator[dict[str, str]]:
        """The environment of a job with so many thousandths of each of `count` GPUs; waits until they are free.

        Where there are none at all, everything is as it was. ValueError where there are fewer than it asks for.
        """
        if not self.names or not count:
            yield {VISIBLE: ""} if self.names else {}
            return
        if count > len(self.names):
            raise ValueError(f"got gpus: {count}, expected at most the {len(self.names)} GPUs of this machine")
        with self._changed:
            turn, self._asked = self._asked, self._asked + 1  # else small jobs would pass a large one for ever
            self._changed.wait_for(lambda: self._served == turn and len(self._with_room(share)) >= count)
            taken = self._with_room(share)[:count]
            self._served += 1
            self._give(taken, -share)
        try:
            yield {VISIBLE: ",".join(taken)}
        finally:
            with self._changed:
                self._give(taken, share)

    def _with_room(self, share: int) -> list[str]:
        """Those with room for one more such job, the one with most room first."""
        free = (name for name, room in self._room.items() if room >= share)
        return sorted(free, key=lambda name: -self._room[name])

    def _give(self, names: Sequence[str], room: int) -> None:
        for name in names:
            self._room[name] += room
        self._changed.notify_all()
