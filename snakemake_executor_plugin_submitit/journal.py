"""What was submitted, on disk before and after every call of the scheduler: nothing is lost when this process is.

One line of JSON an event, appended and flushed: a batch of jobs is about to be submitted, a batch has its id, a job
is over. A line that a crash cut short is the last one, and is dropped.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a job was submitted: the batch, and its place in it; `digest` tells the work from another on its output."""

    batch: str
    task: int  # of the array
    index: int  # among the jobs of one task
    digest: str


@dataclass
class Batch:
    """One call of the scheduler: its name there, its number of tasks, and its id once that is known."""

    name: str
    tasks: int
    time: float  # seconds since the epoch
    id: str = ""
    open: set[str] = field(default_factory=set)  # the outputs of jobs that are not over

    def job_id(self, task: int) -> str:
        """The scheduler's id of one task."""
        return self.id if self.tasks == 1 else f"{self.id}_{task}"


class Journal:
    """The submissions of a workflow; one process at a time holds it, and the next one goes on with it.

    Raises RuntimeError naming the process that holds it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._writing = Lock()  # of the threads of this process
        self.batches: dict[str, Batch] = {}
        self._places: dict[str, Place] = {}
        self._file = (folder / "journal.jsonl").open("a+", encoding="utf-8")
        self._hold(folder / "lock")
        for event in self._read():
            self._apply(event)
        self._compact()

    def place(self, output: str) -> Place | None:
        """Where the job that makes this output was submitted last, if it is not known to be over."""
        return self._places.get(output)

    def submitting(self, name: str, jobs: Sequence[Sequence[tuple[str, str]]]) -> Batch:
        """Notes a batch before it is submitted: of every task's jobs the output and the digest."""
        self._write({"batch": name, "time": time.time(), "jobs": [[list(job) for job in task] for task in jobs]})
        os.fsync(self._file.fileno())
        return self.batches[name]

    def submitted(self, name: str, identifier: str) -> None:
        """Notes the scheduler's id of a batch."""
        self._write({"batch": name, "id": identifier})
        os.fsync(self._file.fileno())

    def over(self, output: str) -> None:
        """Notes that the job has ended, one way or the other."""
        if output in self._places:
            self._write({"over": output})

    def close(self) -> None:
        """Lets another process have the journal."""
        self._file.close()
        self._lock.close()

    def _hold(self, path: Path) -> None:
        self._lock = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.seek(0)
            raise RuntimeError(
                f"{self._lock.read().strip() or 'another process'} submits from {path.parent}"
            ) from error
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def _read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        whole, _, _ = self._file.read().rpartition("\n")
        self._file.truncate(len(whole.encode()) + 1 if whole else 0)  # a line that was cut short must not be continued
        return [json.loads(line) for line in whole.splitlines()]

    def _write(self, event: dict[str, Any]) -> None:
        with self._writing:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()
            self._apply(event)

    def _apply(self, event: dict[str, Any]) -> None:
        if "over" in event:
            self._forget(event["over"])
        elif "id" in event:
            self.batches[event["batch"]].id = event["id"]
        else:
            batch = self.batches[event["batch"]] = Batch(event["batch"], len(event["jobs"]), event["time"])
            for task, jobs in enumerate(event["jobs"]):
                for index, (output, work) in enumerate(jobs):
                    self._forget(output)
                    self._places[output] = Place(batch.name, task, index, work)
                    batch.open.add(output)

    def _forget(self, output: str) -> None:
        place = self._places.pop(output, None)
        if place:
            self.batches[place.batch].open.discard(output)

    def _compact(self) -> None:
        """Drops what is over, so that the journal does not grow for ever."""
        if not any(batch.open for batch in self.batches.values()):
            self.batches.clear()
            self._file.truncate(0)
