"""What the executor needs of a place that runs jobs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .slurm import State


class Full(ValueError):
    """The scheduler has as many jobs as it may have, in its own words."""


class Backend(Protocol):
    """What the executor needs of a place that runs jobs."""

    largest_array: int
    longest_poll: float  # seconds
    bundles: bool  # whether jobs that are short share one process
    canceller: str  # the program that cancels a job by its id
    is_slow: bool  # whether a job may be over, or its files there, long before that is seen
    tell: Callable[[str], None]  # what is told, in its words, that the scheduler does not answer; of an answer, ""

    def room(self, gpus: int) -> bool:
        """Whether a job that asks for so many GPUs can be submitted now; ValueError if it never can."""
        ...

    def take_up(self, identifier: str) -> None:
        """A job that a process before this one submitted is this one's now."""
        ...

    def submit(self, folder: Path, name: str, functions: Sequence[Callable[[], Any]], wanted: dict[str, Any]) -> str:
        """The id of one job, or of the array of several; ValueError in the scheduler's own words if it refuses.

        Full if it refuses for now.
        """
        ...

    def states(self, ids: Iterable[str]) -> Mapping[str, State]:
        """The states of those jobs that are known. Raises NoAnswer."""
        ...

    def named(self, name: str) -> Mapping[str, State]:
        """The states of what was submitted under that name, or those with commas between. Raises NoAnswer."""
        ...

    def in_queue(self) -> int:
        """How many jobs this user has, of any name. Raises NoAnswer."""
        ...

    def cancel(self, ids: Iterable[str]) -> bool:
        """Cancels jobs that are not over yet; whether that is certain."""
        ...

    def cancel_named(self, name: str) -> bool:
        """Cancels what was submitted under that name, if anything was; whether that is certain by now."""
        ...

    def revive(self, identifier: str) -> bool:
        """Lets a job that could not be launched start elsewhere; False if that has happened too often."""
        ...

    def stop(self) -> None:
        """Lets no `submit` wait any longer; it raises ValueError."""
        ...
