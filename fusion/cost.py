"""What a piece of work costs: seconds, and memory beyond what was held before it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    """seconds of wall time; peak_bytes: the most memory held beyond that at the start, of the GPU if there is one.

    On the CPU it is resident memory, mapped files included; -1 where the system does not tell.
    """

    seconds: float = 0.0
    peak_bytes: int = -1


@contextmanager
def measured() -> Iterator[Cost]:
    """A Cost that is filled in when the block ends."""
    cost, began = Cost(), time.monotonic()
    before = _reset()
    yield cost
    cost.seconds = time.monotonic() - began
    peak = _peak() if before >= 0 else -1
    cost.peak_bytes = peak - before if peak >= 0 else -1


def _reset() -> int:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        CLEAR_REFS.write_text("5")  # Linux: forget the high-water mark so far
        return _field("VmRSS")
    except OSError:  # another system, or a container that may not
        return -1


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _field("VmHWM")


def _field(name: str) -> int:
    lines = (line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return next((int(line.split()[1]) * 1024 for line in lines), -1)
