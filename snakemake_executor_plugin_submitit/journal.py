"""What was submitted, on disk before and after every call of the scheduler: nothing is lost when this process is.

One line of JSON an event, appended and flushed: a batch of jobs is about to be submitted, a batch has its id, it was
cancelled, a job is over, or has ended while no run needed it. A line that cannot be read is set aside with a word; of
a batch whose own line is lost, a copy stands in its folder. A line that a crash cut short is the last one, and is
dropped.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock as ThreadLock
from typing import Any

from fusion.artifacts import new_file

from .entries import COPY, JOURNAL, VERSION, Batch, Entries, is_batch
from .lock import Lock
from .settings import ExecutorSettings


class Journal(Entries):
    """The submissions of a workflow; one process at a time holds it, and the next one goes on with it.

    Raises RuntimeError naming the process that holds it. tell: is told what had to be set aside.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None] = print) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(folder / "lock")
        super().__init__(folder)
        self._writing, self._tell = ThreadLock(), tell  # of the threads of this process
        self.lost: list[str] = []  # the names of batches of which nothing else is known
        if self.damaged:
            tell(self._set_aside())
        for output in self.places.keys() - self.live.keys():
            if not self.outcome(self.places[output]):  # its files were removed since
                self._forget(output)
        if not self.places:
            self.batches, self.kept = {}, []  # it does not grow for ever
        with new_file(folder / JOURNAL) as file:
            file.write_bytes(b"".join(line + b"\n" for line in self.kept))
        self._file = (folder / JOURNAL).open("a", encoding="utf-8")

    def submitting(
        self,
        name: str,
        jobs: Sequence[Sequence[tuple[str, str, str]]],
        cluster: str,
        patience: float = ExecutorSettings.patience,
    ) -> Batch:
        """Notes a batch before it is submitted: of every task's jobs the output, and hashes of its work and inputs.

        patience: seconds for which the scheduler may not list it. Raises OSError where that cannot be noted.
        """
        event = {"batch": name, "time": time.time(), "cluster": cluster, "patience": patience, "jobs": jobs}
        with new_file(self.folder / name / COPY) as file:
            file.write_text(_line(event), encoding="utf-8")
        with self._writing:
            self._append(event, sync=True)
            self.apply(event)
        return self.batches[name]

    def submitted(self, name: str, identifier: str) -> None:
        """Notes the scheduler's id of a batch."""
        self._write({"batch": name, "id": identifier, "time": time.time()}, sync=True)

    def cancelled(self, name: str) -> None:
        """Notes that the scheduler was asked to cancel a batch, whose processes may take a while to end."""
        self._write({"batch": name, "cancelled": True})

    def over(self, output: str) -> None:
        """Notes that the job has ended, one way or the other."""
        place = self.places.get(output)
        if place is not None:
            self._write({"over": output})
            batch = self.batches[place.batch]
            if not batch.open and not batch.ended:
                with suppress(OSError):
                    (self.folder / place.batch / COPY).unlink(missing_ok=True)

    def ended(self, output: str) -> None:
        """Notes that the job ended well while no run needed it; one that does takes it up as long as it has files."""
        self._write({"ended": output})

    def close(self) -> None:
        """Lets another process have the journal."""
        self._file.close()
        self._lock.close()

    def _write(self, event: dict[str, Any], sync: bool = False) -> None:
        """Notes what has happened already; where the file system is full or away, the next process finds it out."""
        with self._writing:
            try:
                self._append(event, sync)
            except OSError as error:
                self._tell(f"{self.folder / JOURNAL} cannot be written now ({error}); the run goes on")
            self.apply(event)

    def _append(self, event: dict[str, Any], sync: bool) -> None:
        self._file.write(_line(event))
        self._file.flush()
        if sync:
            os.fsync(self._file.fileno())

    def _set_aside(self) -> str:
        """Keeps the lines that say nothing in a file of their own, reads the copies of batches, and tells of it."""
        aside = self.folder / f"journal.damaged-{time.time_ns()}.jsonl"
        aside.write_bytes(b"\n".join(self.damaged) + b"\n")
        for folder in filter(is_batch, sorted(self.folder.iterdir())):
            if folder.name in self.batches:
                continue
            try:
                line = (folder / COPY).read_bytes().strip()
            except OSError:
                line = b""
            if self.understands(line):
                self.kept.append(line)
            else:
                self.lost.append(folder.name)
        return (
            f"{len(self.damaged)} lines of {self.folder / JOURNAL} cannot be read and were moved to {aside.name} "
            "beside it; what they may have told of is looked for by its name in the queue"
        )


def _line(event: dict[str, Any]) -> str:
    return json.dumps({"version": VERSION, **event}) + "\n"
