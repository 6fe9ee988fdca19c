"""What a process before this one submitted: taken up, submitted again, or named because nothing needs it now."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from snakemake_executor_plugin_forkserver.report import describe

from . import batches
from .backends import Backend
from .entries import Batch, Place
from .journal import Journal
from .outcome import Outcome
from .search import Search
from .voice import Voice

MANY = 5  # jobs that are named one by one


class Earlier:
    """The open jobs of the journal; hashes: what tells a job's work and inputs from others; cluster: of the backend."""

    def __init__(
        self,
        journal: Journal,
        search: Search,
        backend: Backend,
        voice: Voice,
        hashes: Callable[[Any], tuple[str, str]],
        cluster: str,
    ) -> None:
        self._journal, self._search, self._backend, self._voice = journal, search, backend, voice
        self._hashes, self._cluster = hashes, cluster

    def take_up(self, job: Any) -> Batch | None:
        """The batch in which the job was submitted before; None where it is to be submitted now.

        What was submitted for another work, or with other inputs, is cancelled, and has ended when this returns.
        """
        output = batches.key(job)
        place = self._journal.places.get(output)
        if place is None:
            return None
        batch, done = self._journal.batches[place.batch], self._journal.outcome(place)
        is_lost = output in batch.ended and not done  # what it left was removed since
        if is_lost or batch.cluster != self._cluster:  # and is over, or this run would have been refused
            return self._journal.over(output)
        self._search.find_id(batch)
        identifier = batch.job_id(place.task)
        why = self._why_not(job, place, batch, done)
        if not why and (done or (batch.id and not batch.cancelled)):
            if not done:
                self._backend.take_up(identifier)
            self._voice.say(f"{describe(job)} was submitted before: job {identifier}")
            return batch
        if batch.id and not done:  # it may still run, and would write to the same place
            if why:
                text = f"{describe(job)} was submitted before, as job {identifier}, and {why}"
                self._voice.say(f"{text}: that job is cancelled, and it is submitted again")
            self._search.end(batch, identifier)
        self._journal.over(output)
        return None

    def begin(self, needed: Collection[str]) -> None:
        """Looks for what nothing needs now; `needed`: the keys of the jobs that this run needs."""
        if self._journal.lost:
            self._search.end_named(self._journal.lost)
        places = dict(self._journal.places)
        kept = {(place.batch, place.task) for output, place in places.items() if output in needed}
        left: dict[str, list[str]] = {}
        ended: list[str] = []
        for output, place in places.items():
            batch = self._journal.batches[place.batch]
            if batch.cluster != self._cluster:
                continue
            self._search.find_id(batch)
            if output in needed or output in batch.ended:
                continue
            done = self._journal.outcome(place)
            if done.error if done else not batch.id:
                self._journal.over(output)
            elif done:
                self._journal.ended(output)
                ended.append(output)
            elif (place.batch, place.task) not in kept:
                left.setdefault(batch.job_id(place.task), []).append(output)
        if left:
            self._tell_of(left)
        if ended:
            named = ", ".join(sorted(ended)[:MANY]) + ", …" * (len(ended) > MANY)
            count = f"{len(ended)} jobs of an earlier run have" if len(ended) > 1 else "a job of an earlier run has"
            text = f"{count} ended well, and nothing needs now what it made: {named}"
            self._voice.say(f"{text}; a run that does takes it up")

    def _tell_of(self, left: Mapping[str, Sequence[str]]) -> None:
        """Names those that are still in the queue; left: the outputs of each job, by its id."""
        states = self._search.ask(lambda: self._backend.states(left))
        alive = [one for one in left if one in states and not states[one].end]
        for output in (output for one in left.keys() - set(alive) for output in left[one]):
            batch = self._journal.batches[self._journal.places[output].batch]
            if any(one in states for one in left if output in left[one]) or not self._search.is_young(batch):
                self._journal.over(output)
        if alive:
            named = [f"{', '.join(left[one])} (job {one})" for one in alive[:MANY]] + ["…"] * (len(alive) > MANY)
            count = f"{len(alive)} jobs of an earlier run are" if len(alive) > 1 else "a job of an earlier run is"
            cancel = f"`{self._backend.canceller} {' '.join(alive)}`"
            text = f"{count} still in the queue, and nothing needs now what it makes: {'; '.join(named)}"
            self._voice.say(f"{text}; to cancel: {cancel}")

    def _why_not(self, job: Any, place: Place, batch: Batch, done: Outcome | None) -> str:
        """Why what was submitted is not what is wanted now; '' where it is."""
        try:
            work, inputs = self._hashes(job)
        except (ValueError, TypeError) as error:
            return f"cannot be submitted now ({error})"
        if work != place.work:
            return "what it is to do has changed since"
        if inputs != place.inputs:
            return "its inputs have changed since"
        if done:
            is_there = not done.error and all(os.path.exists(path) for path in job.output)
            return "" if is_there else "what it made is gone"
        pickle = self._journal.folder / batch.name / f"{batch.job_id(place.task)}_submitted.pkl"
        is_whole = not batch.id or batch.cancelled or os.path.exists(pickle)
        return "" if is_whole else "the process that submitted it was killed before it wrote all of its files"
