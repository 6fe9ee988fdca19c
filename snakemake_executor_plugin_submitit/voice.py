"""What a user is told of the jobs: every transition once, whatever `quiet` says, and now and then what is awaited."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from snakemake_executor_plugin_forkserver.progress import duration
from snakemake_executor_plugin_forkserver.report import tell

from .slurm import State


class Voice:
    """Says things by Snakemake's logger; `every`: seconds after which it says what is waited for."""

    def __init__(self, logger: Any, quiet: Iterable[Any] | None, every: float) -> None:
        self._logger, self._quiet, self._every = logger, quiet, every
        self._last = time.monotonic()
        self._said: set[str] = set()
        self._away = ""

    def say(self, text: str) -> None:
        """Tells of a transition."""
        self._last = time.monotonic()
        self._logger.info(text if text.startswith("» ") else f"» {text}")

    def once(self, text: str) -> None:
        """Says it if it was not said before."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def fail(self, text: str) -> None:
        """Tells of a failure; also where Snakemake is to be quiet about all."""
        self._last = time.monotonic()
        tell(self._logger, self._quiet, text)

    def answer(self, away: str = "") -> None:
        """Notes that the scheduler answers, or that it does not, in the words of its programs: each change is said."""
        if bool(away) == bool(self._away):
            return
        self._away = away
        self.say(f"SLURM does not answer ({away}); waiting for it" if away else "SLURM answers again")

    def wait(self, jobs: Iterable[tuple[str, float, State | None]], held: Sequence[str]) -> None:
        """Says what is waited for, if nothing was said for long.

        jobs: of each that is not over the name, when it was submitted (seconds since the epoch), and what the last
        query said.
        held: how many are not submitted yet, and why.
        """
        if time.monotonic() - self._last >= self._every:
            self.say(queue(jobs, held, time.time()))


def queue(jobs: Iterable[tuple[str, float, State | None]], held: Sequence[str], now: float) -> str:
    """The queue in one line: how many are pending by reason, how many running, and which one waits longest."""
    reasons: Counter[str] = Counter()
    others: Counter[str] = Counter()
    pending: list[tuple[float, str]] = []
    for name, since, state in jobs:
        if state is not None and state.name == "PENDING":
            reasons[state.reason] += 1
            pending.append((since, name))
        else:
            others[state.name.lower() if state else "not in the last answer of SLURM"] += 1
    parts = [f"{count} {name}" for name, count in others.most_common()]
    if pending:
        told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        parts.insert(0, f"{len(pending)} pending ({told})")
    line = f"in the queue: {', '.join([*parts, *held]) or 'nothing'}"
    if pending:
        since, name = min(pending)
        line += f"; the longest waits {duration(now - since)}: {name}"
    return line
