"""Time and memory of what runs on a device: medians after a warm-up, and the peak beyond what was taken before."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from machine import PeakMemory

Work = Callable[[], object]


def once(work: Work, place: torch.device) -> float:
    """The seconds until the device has done work()."""
    settle(place)
    began = time.perf_counter()
    work()
    settle(place)
    return time.perf_counter() - began


def seconds(work: Work, place: torch.device, repeats: int) -> float:
    """The median seconds of work(), after one that does not count."""
    return side_by_side({"": work}, place, repeats)[""]


def side_by_side(works: Mapping[str, Work], place: torch.device, repeats: int) -> dict[str, float]:
    """The median seconds of each, their repeats interleaved, after one of each that does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(1 + repeats):
        for name, work in works.items():
            times[name].append(once(work, place))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def extra_bytes(work: Work, place: torch.device) -> int:
    """The peak memory that work() takes beyond what was taken before: on the CPU, anonymous memory."""
    clear(place)
    if place.type != "cuda":
        with PeakMemory() as memory:
            work()
        return memory.peak
    torch.cuda.reset_peak_memory_stats(place)
    before = torch.cuda.memory_allocated(place)
    work()
    settle(place)
    return torch.cuda.max_memory_allocated(place) - before


def settle(place: torch.device) -> None:
    """Waits until the device has done what it was told."""
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def clear(place: torch.device) -> None:
    """Gives back what nobody uses any more."""
    gc.collect()
    if place.type == "cuda":
        torch.cuda.empty_cache()
