"""Jobs are looked for and ended by their ids and by the names of their batches, which are unique."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping

from .backends import Backend
from .batches import Submitted
from .entries import Batch
from .journal import Journal
from .slurm import NoAnswer, State
from .voice import Voice

RETRY = 1.0  # seconds between two questions
KILLED = 30.0  # seconds that SLURM gives a process to end, where it is not asked to give more


class Search:
    """What is asked of the scheduler about single batches and jobs."""

    def __init__(self, journal: Journal, backend: Backend, voice: Voice, patience: float) -> None:
        """`patience`: seconds for which a scheduler may not list what it was given."""
        self._journal, self._backend, self._voice, self._patience = journal, backend, voice, patience
        self._looked_for: set[str] = set()  # batches, by name

    def ask(self, query: Callable[[], Mapping[str, State]]) -> Mapping[str, State]:
        """The answer of the scheduler, however long it takes."""
        while True:
            try:
                found = query()
                self._backend.tell("")
                return found
            except NoAnswer as error:
                self._backend.tell(str(error))
                time.sleep(RETRY)

    def is_young(self, batch: Batch) -> bool:
        """Whether the scheduler may not list the batch yet."""
        return self._backend.is_slow and time.time() - batch.time < self._patience

    def find_id(self, batch: Batch) -> None:
        """Looks for the id of a batch where the process that submitted it did not note one.

        Where none is found, and the scheduler may be behind, what may come of it is cancelled.
        """
        if batch.id or batch.name in self._looked_for:
            return
        self._looked_for.add(batch.name)
        if found := self.ask(lambda: self._backend.named(batch.name)):
            self._has_id(batch, _alive(found) or found)
        elif self.is_young(batch):
            while not self._backend.cancel_named(batch.name):
                time.sleep(RETRY)

    def is_gone(self, submitted: Submitted, state: State | None) -> bool:
        """Whether a job that is awaited is certainly gone; state: what the last query said of it.

        One that no query lists is looked for by the name of its batch, and what may live of it is cancelled.
        """
        if state is not None:
            return True
        batch = submitted.batch
        try:
            alive = _alive(found := self._backend.named(batch.name))
        except NoAnswer as error:
            self._backend.tell(str(error))
            return False
        if alive and not any(one.partition("_")[0] == batch.id for one in alive):
            self._has_id(batch, alive)  # what sbatch said was not its id
            return False
        if submitted.id in alive:
            submitted.life.look(found[submitted.id], time.monotonic())
            if submitted.life.awaited is None:
                return False
        return self._backend.cancel([submitted.id])

    def end(self, batch: Batch, identifier: str) -> None:
        """Cancels a job and waits until it has ended; also while the scheduler does not answer, or is behind."""
        began = time.monotonic()
        while True:
            self._backend.cancel([identifier])
            state = self.ask(lambda: self._backend.states([identifier])).get(identifier)
            is_unknown = state is None and self.is_young(batch) and time.monotonic() - began < KILLED
            if not is_unknown and (state is None or state.end):
                return
            self._voice.once(f"waiting for the end of job {identifier}, which is cancelled")
            time.sleep(RETRY)

    def end_named(self, names: Collection[str]) -> None:
        """Cancels what was submitted under these names, and waits until it has ended."""
        while alive := _alive(self.ask(lambda: self._backend.named(",".join(names)))):
            what = f"what job {', '.join(alive)} of an earlier run makes is not known any more"
            self._voice.once(f"{what}: it is cancelled")
            self._backend.cancel(alive)
            time.sleep(RETRY)

    def _has_id(self, batch: Batch, ids: Iterable[str]) -> None:
        """Notes the id of a batch; of several submissions of it, all but the last are cancelled."""
        *others, last = sorted({one.partition("_")[0] for one in ids}, key=int)
        if others:
            self._backend.cancel(others)
        self._journal.submitted(batch.name, last)


def _alive(states: Mapping[str, State]) -> list[str]:
    return [one for one, state in states.items() if not state.end]
