"""The life of a job, as far as the process that submits it can see.

    waiting ──► submitted ──► seen ──► running ──► ended
       │            │           │         │          ▲
    refused         └───────────┴─────────┴──► awaited ──► gone

waiting    to be submitted later: a limit is reached (`jobs` is one), no GPU is free, its bundle is not full, or the
           process of an earlier submission died before the job began (held.py)
refused    the scheduler will not have it, in its own words
submitted  the scheduler gave it an id, and no query has listed it yet: a scheduler may be behind
seen       a query has listed it: it is pending, held or requeued
running    it has left the file that says that it began
awaited    a query says that it is over, or does not list it, and its outcome cannot be read yet
ended      its outcome could be read, which says how it ended (outcome.py)
gone       it was awaited for as long as `Patience` says, was looked for by the name of its batch, which is unique, and
           was cancelled. Where what it made is whole, it counts as ended well; what may be whole is not deleted

A job is taken up by the next process in whatever state it is (journal.py). One that was dead before that process first
looked is submitted again; so is one whose process died before it began, if no user cancelled that.
"""

from dataclasses import dataclass

from .slurm import State


@dataclass(frozen=True)
class Patience:
    """How long an outcome is awaited, in seconds.

    latency: where the scheduler says that the job ended badly; what a network file system may need.
    long: where the job may have ended well, or where the scheduler may be behind.
    """

    latency: float
    long: float

    def of(self, state: State | None, taken_up: bool) -> float:
        """For a job in that state; None where no query lists it.

        Of a job that another process submitted nothing is to be expected that would take long.
        """
        well = state.name in ("COMPLETED", "PREEMPTED") if state is not None else not taken_up
        return max(self.latency, self.long) if well else self.latency


@dataclass
class Life:
    """What was seen of one job that was submitted, `taken_up` if by a process before this one."""

    taken_up: bool = False
    was_alive: bool = False  # in a query of this process
    awaited: float | None = None  # since when, in seconds of `time.monotonic`

    def look(self, state: State | None, now: float) -> None:
        """Notes what a query says of the job, None where it does not list it."""
        if state is None or state.end:
            self.awaited = now if self.awaited is None else self.awaited
        elif state.name != "COMPLETING":
            self.was_alive, self.awaited = True, None

    def is_due(self, state: State | None, patience: Patience, now: float) -> bool:
        """Whether the outcome has been awaited for long enough."""
        return self.awaited is not None and now - self.awaited >= patience.of(state, self.taken_up)
