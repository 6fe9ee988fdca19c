"""How far a run is, and about how long it still takes."""

from collections import Counter, defaultdict
from collections.abc import Hashable


class Progress:
    """Counts finished jobs; estimates the time left from the finished jobs of the same rule in this run."""

    def __init__(self, waiting: Counter[str]) -> None:
        """`waiting` holds the number of jobs by rule."""
        self._waiting = waiting
        self._starts: dict[Hashable, float] = {}
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._begin: float | None = None

    def start(self, job: Hashable, now: float) -> None:
        """Notes that `job` starts at the time `now`, in seconds."""
        self._begin = now if self._begin is None else self._begin
        self._starts[job] = now

    def finish(self, job: Hashable, rule: str, name: str, now: float) -> str:
        """The line to show when `job` of `rule`, called `name`, has finished at the time `now` in seconds."""
        self._begin = now if self._begin is None else self._begin
        seconds = now - self._starts.pop(job, now)
        self._seconds[rule].append(seconds)
        self._waiting[rule] -= 1
        done = sum(map(len, self._seconds.values()))
        total = done + sum(count for count in self._waiting.values() if count > 0)
        if done == total:
            return f"» all {total} done in {duration(now - self._begin)}"
        left = duration(self._left(now - self._begin))
        return f"» {done} of {total} done, about {left} left (finished {name} in {duration(seconds)})"

    def _left(self, elapsed: float) -> float:
        """Seconds of work left, divided by the seconds of work that were done per second elapsed."""
        finished = [seconds for rule in self._seconds.values() for seconds in rule]
        mean = {rule: sum(seconds) / len(seconds) for rule, seconds in self._seconds.items()}
        overall = sum(finished) / len(finished)
        work = sum(max(count, 0) * mean.get(rule, overall) for rule, count in self._waiting.items())
        return work * elapsed / sum(finished) if sum(finished) else 0.0


def duration(seconds: float) -> str:
    """Seconds as a person says them, such as "40 s", "3 min" or "2 h 10 min"."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
