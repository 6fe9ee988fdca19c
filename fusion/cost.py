"""What a piece of work costs: seconds, and memory beyond what was held before it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fusion.device import device

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """seconds of wall time; peak_bytes: the most memory held beyond that at the start, of the GPU where models run on
    one, else of this process.

    Of a process it is resident memory, mapped files included; -1 where the system does not tell.
    """

    seconds: float = 0.0
    peak_bytes: int = -1


class Gpu:
    """The memory that torch has allocated on the GPU of this process, in bytes."""

    def reset(self) -> int:
        """What is held now; the peak begins anew."""
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """The most that was held since."""
        return torch.cuda.max_memory_allocated()


class Host:
    """The resident memory of this process, in bytes."""

    def reset(self) -> int:
        """What is held now, -1 where the system does not tell; the peak begins anew."""
        try:
            CLEAR_REFS.write_text("5")  # Linux: forget the high-water mark so far
            return self._field("VmRSS")
        except OSError:  # another system, or a container that may not
            return -1

    def peak(self) -> int:
        """The most that was held since; -1 where the system does not tell."""
        return self._field("VmHWM")

    def _field(self, name: str) -> int:
        lines = (line for line in STATUS.read_text().splitlines() if line.startswith(name))
        return next((int(line.split()[1]) * 1024 for line in lines), -1)


MEMORY: dict[str, Gpu | Host] = {"cuda": Gpu(), "cpu": Host()}  # by the type of a device


@contextmanager
def measured() -> Iterator[Cost]:
    """A Cost that is filled in when the block ends."""
    place, cost, began = device(), Cost(), time.monotonic()
    memory = MEMORY.get(place.type, MEMORY["cpu"])
    before = memory.reset()
    yield cost
    if place.type == "cuda":
        torch.cuda.synchronize(place)  # a GPU may not have begun what it was asked for
    cost.seconds = time.monotonic() - began
    peak = memory.peak() if before >= 0 else -1
    cost.peak_bytes = peak - before if peak >= 0 else -1
