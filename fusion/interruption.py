"""How a stage that can resume hears that its job is about to be preempted or to reach its time limit.

Whatever runs the stage calls `ask`; a stage that is `listening` looks at `asked` between two steps, keeps what it has
done where it is, and raises Interrupted. It is then started again, perhaps on another machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(Exception):
    """A stage has kept what it had done and ended early, as it was asked to."""


class _Request:
    listening = False
    made = False


def ask() -> bool:
    """Asks the stage that runs in this process to end early; whether it listens. Safe in a signal's handler."""
    _Request.made = True
    return _Request.listening


def asked() -> bool:
    """Whether the stage is to keep what it has done and raise Interrupted."""
    return _Request.made


@contextmanager
def listening() -> Iterator[None]:
    """A block in which the stage looks at `asked` every few seconds."""
    _Request.listening = True
    try:
        yield
    finally:
        _Request.listening = False
