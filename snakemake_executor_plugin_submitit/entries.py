"""What the journal of submissions says: batches, and the places of the jobs in them that are not over."""

import json
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import outcome
from .settings import ExecutorSettings

VERSION = 2  # of an event; the first had none
JOURNAL = "journal.jsonl"
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
    cluster: str = "slurm"  # or the host of processes, as `here` says
    patience: float = ExecutorSettings.patience  # seconds for which its scheduler may not list it
    id: str = ""
    sent: float = 0.0  # seconds since the epoch: when its id was noted, which may be long after its first attempt
    cancelled: bool = False
    open: set[str] = field(default_factory=set)  # the outputs of jobs that are not over
    ended: set[str] = field(default_factory=set)  # of jobs that ended well while no run needed them

    def job_id(self, task: int) -> str:
        """The scheduler's id of one task."""
        return self.id if self.tasks == 1 else f"{self.id}_{task}"

    def unlisted_for(self, now: float) -> float:
        """For how many seconds more its scheduler may not list it; now: seconds since the epoch.

        0 where it was cancelled, or is of processes, which can be seen at once.
        """
        if self.cancelled or self.cluster != "slurm":
            return 0.0
        return max(0.0, max(self.time, self.sent) + self.patience - now)


class Entries:
    """The events of the journal in a folder, as far as they can be read; `damaged` are the other lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.batches: dict[str, Batch] = {}
        self._places: dict[str, Place] = {}
        lines = _lines(folder / JOURNAL)
        self.damaged = [line for line in lines if not self.understands(line)]
        self.kept = [line for line in lines if line not in self.damaged]

    @property
    def places(self) -> Mapping[str, Place]:
        """Where the jobs whose ends no run was told of were submitted last, by their outputs."""
        return self._places

    @property
    def live(self) -> Mapping[str, Place]:
        """Those of `places` where a job may still be at work, or where this run is to be told of its end."""
        return {output: place for output, place in self._places.items() if output in self.batches[place.batch].open}

    def outcome_file(self, place: Place) -> Path:
        """Where the job at this place leaves its outcome."""
        return outcome.place(self.folder / place.batch, place.task, place.index)

    def outcome(self, place: Place) -> outcome.Outcome | None:
        """The outcome of the job at this place; None where there is none, or none that can be read now."""
        with suppress(outcome.Damaged):
            return outcome.read(self.outcome_file(place))
        return None

    def understands(self, line: bytes) -> bool:
        """Applies the event of a line; whether it could be."""
        try:
            event = json.loads(line)
            if event.pop("version", 1) > VERSION:
                return False
            self.apply(event)
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        return True

    def apply(self, event: dict[str, Any]) -> None:
        """Changes what is known by one event."""
        if "over" in event:
            self._forget(event["over"])
        elif "ended" in event:
            batch = self.batches[self._places[event["ended"]].batch]
            batch.open.discard(event["ended"])
            batch.ended.add(event["ended"])
        elif "id" in event:
            batch = self.batches[event["batch"]]
            batch.id, batch.sent = event["id"], float(event.get("time", batch.time))
        elif "cancelled" in event:
            self.batches[event["batch"]].cancelled = True
        else:
            self._begin(event)

    def _begin(self, event: dict[str, Any]) -> None:
        cluster, patience = event.get("cluster", "slurm"), float(event.get("patience", ExecutorSettings.patience))
        batch = Batch(event["batch"], len(event["jobs"]), float(event["time"]), cluster, patience)
        places = {
            output: Place(batch.name, task, index, *(hashes if len(hashes) == 2 else ("", "")))
            for task, jobs in enumerate(event["jobs"])
            for index, (output, *hashes) in enumerate(jobs)
        }
        self.batches[batch.name] = batch
        for output, place in places.items():
            known = self._places.get(output)
            if known is None or self.batches[known.batch].time <= batch.time:  # a copy may be read late
                self._forget(output)
                self._places[output] = place
                batch.open.add(output)

    def _forget(self, output: str) -> None:
        place = self._places.pop(output, None)
        if place:
            self.batches[place.batch].open.discard(output)
            self.batches[place.batch].ended.discard(output)


def here(cluster: str) -> str:
    """Where jobs of `submitit-cluster` run: numbers of processes mean nothing on another host."""
    return cluster if cluster == "slurm" else f"{cluster} on {socket.gethostname()}"


def is_batch(folder: Path) -> bool:
    """Whether a folder is that of a batch; others may stand beside it."""
    if not re.search(r"\.[0-9a-f]{8}$", folder.name) or not folder.is_dir():
        return False
    names = os.listdir(folder)
    return not names or any(name == COPY or name.endswith((".pkl", "_submission.sh")) for name in names)


def _lines(path: Path) -> list[bytes]:
    """The lines of the file without what a crash cut short, or a power cut filled with NULs."""
    try:
        *whole, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [line.strip(b"\0") or line for line in [*whole, *([last] if b"\0" in last else [])] if line.strip()]
