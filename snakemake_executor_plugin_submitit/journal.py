"""What was submitted, on disk before and after every call of the scheduler: nothing is lost when this process is.

One line of JSON an event, appended and flushed: a batch of jobs is about to be submitted, a batch has its id, it was
cancelled, a job is over. A line that cannot be read (one that a crash cut short, or of another version) is set aside
with a word; of a batch whose own line is lost, a copy stands in its folder.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock as ThreadLock
from typing import Any

from fusion.artifacts import new_file

from .lock import Lock

VERSION = 2  # of an event; the first had none
COPY = "batch.json"  # in the folder of a batch, the event that began it


@dataclass(frozen=True)
class Place:
    """Where a job was submitted: the batch, and its place in it; what it was to do, and what its inputs were."""

    batch: str
    task: int  # of the array
    index: int  # among the jobs of one task
    work: str  # a hash
    inputs: str  # a hash


@dataclass
class Batch:
    """One call of the scheduler: its name there, its number of tasks, and its id once that is known."""

    name: str
    tasks: int
    time: float  # seconds since the epoch
    id: str = ""
    cancelled: bool = False
    open: set[str] = field(default_factory=set)  # the outputs of jobs that are not over

    def job_id(self, task: int) -> str:
        """The scheduler's id of one task."""
        return self.id if self.tasks == 1 else f"{self.id}_{task}"


class Journal:
    """The submissions of a workflow; one process at a time holds it, and the next one goes on with it.

    Raises RuntimeError naming the process that holds it. tell: is told what had to be set aside.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None] = print) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._writing = ThreadLock()  # of the threads of this process
        self.batches: dict[str, Batch] = {}
        self._places: dict[str, Place] = {}
        self._lock = Lock(folder / "lock")
        self._path = folder / "journal.jsonl"
        self.lost: list[str] = []  # the names of batches of which nothing else is known
        lines = _lines(self._path)
        damaged = [line for line in lines if not self._understands(line)]
        kept = [line for line in lines if line not in damaged]
        if damaged:
            kept += self._set_aside(damaged, tell)
        if not any(batch.open for batch in self.batches.values()):
            self.batches, kept = {}, []  # it does not grow for ever
        with new_file(self._path) as file:
            file.write_bytes(b"".join(line + b"\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")

    @property
    def places(self) -> Mapping[str, Place]:
        """Where the jobs that are not known to be over were submitted last, by their outputs."""
        return self._places

    def submitting(self, name: str, jobs: Sequence[Sequence[tuple[str, str, str]]]) -> Batch:
        """Notes a batch before it is submitted: of every task's jobs the output, and hashes of its work and inputs."""
        event = {"batch": name, "time": time.time(), "jobs": [[list(job) for job in task] for task in jobs]}
        with new_file(self.folder / name / COPY) as file:
            file.write_text(_line(event), encoding="utf-8")
        self._write(event, sync=True)
        return self.batches[name]

    def submitted(self, name: str, identifier: str) -> None:
        """Notes the scheduler's id of a batch."""
        self._write({"batch": name, "id": identifier}, sync=True)

    def cancelled(self, name: str) -> None:
        """Notes that the scheduler was asked to cancel a batch, whose processes may take a while to end."""
        self._write({"batch": name, "cancelled": True})

    def over(self, output: str) -> None:
        """Notes that the job has ended, one way or the other."""
        place = self._places.get(output)
        if place is not None:
            self._write({"over": output})
            if not self.batches[place.batch].open:
                (self.folder / place.batch / COPY).unlink(missing_ok=True)

    def close(self) -> None:
        """Lets another process have the journal."""
        self._file.close()
        self._lock.close()

    def _write(self, event: dict[str, Any], sync: bool = False) -> None:
        with self._writing:
            self._file.write(_line(event))
            self._file.flush()
            if sync:
                os.fsync(self._file.fileno())
            self._apply(event)

    def _understands(self, line: bytes) -> bool:
        """Applies an event; whether it could be."""
        try:
            event = json.loads(line)
            if event.pop("version", 1) > VERSION:
                return False
            self._apply(event)
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        return True

    def _apply(self, event: dict[str, Any]) -> None:
        if "over" in event:
            self._forget(event["over"])
        elif "id" in event:
            self.batches[event["batch"]].id = event["id"]
        elif "cancelled" in event:
            self.batches[event["batch"]].cancelled = True
        else:
            self._begin(event)

    def _begin(self, event: dict[str, Any]) -> None:
        batch = Batch(event["batch"], len(event["jobs"]), float(event["time"]))
        places = {
            output: Place(batch.name, task, index, *(hashes if len(hashes) == 2 else ("", "")))
            for task, jobs in enumerate(event["jobs"])
            for index, (output, *hashes) in enumerate(jobs)
        }
        for output in places:
            self._forget(output)
        self._places |= places
        batch.open |= places.keys()
        self.batches[batch.name] = batch

    def _forget(self, output: str) -> None:
        place = self._places.pop(output, None)
        if place:
            self.batches[place.batch].open.discard(output)

    def _set_aside(self, damaged: Sequence[bytes], tell: Callable[[str], None]) -> list[bytes]:
        """Keeps the lines that say nothing in a file of their own, and reads the copies of batches that are not known.

        Returns the copies, as lines.
        """
        aside = self.folder / f"journal.damaged-{time.time_ns()}.jsonl"
        aside.write_bytes(b"\n".join(damaged) + b"\n")
        known, lines = dict(self._places), []
        for folder in sorted(filter(Path.is_dir, self.folder.iterdir()), key=os.path.getmtime):
            if folder.name in self.batches:
                continue
            try:
                line = (folder / COPY).read_bytes().strip()
            except OSError:
                line = b""
            if self._understands(line):
                lines.append(line)
            else:
                self.lost.append(folder.name)
        for output, place in known.items():  # what the journal says itself holds
            self._forget(output)
            self._places[output] = place
            self.batches[place.batch].open.add(output)
        tell(
            f"{len(damaged)} lines of {self._path} cannot be read and were moved to {aside.name} beside it; what they "
            "may have told of is looked for by its name in the queue"
        )
        return lines


def _line(event: dict[str, Any]) -> str:
    return json.dumps({"version": VERSION, **event}) + "\n"


def _lines(path: Path) -> list[bytes]:
    """The lines of the file without what a crash cut short, or a power cut filled with NULs."""
    try:
        *whole, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [line.strip(b"\0") or line for line in [*whole, *([last] if b"\0" in last else [])] if line.strip()]
