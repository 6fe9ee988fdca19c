"""Batches made by other processes while the ones before them are used.

Decoding a picture takes milliseconds, a seventh of them in Python: threads would wait for one another where more than
seven cores decode. Processes do not.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Thread
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from fusion.device import device, onto

Key = TypeVar("Key")
CORES = "SLURM_CPUS_PER_TASK"  # of a job whose process may see all cores of its node
MOST = 16  # processes: each holds two batches in shared memory, of which a container may have little
OURS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}  # are for the stage alone


def ahead(make: Callable[[Key], Any], keys: Iterable[Key]) -> Iterator[Any]:
    """make(key) of every key in the order of the keys, where models run.

    make: a key to tensors in the CPU's memory, or a mapping or tuple of such; keys can be pickled, and may be endless.
    For a GPU `workers` processes make them before they are asked for, and leave them in memory that a GPU reads by
    itself; each process begins with a copy of this one, and knows of no change after that. On a CPU, where they would
    take the cores of the model, all are made in turn. What `make` raises is raised where its batch would come. The
    processes end with the iterator: when that is exhausted, closed, or no longer referred to.
    """
    place = device()
    count = workers(place)
    made = _by_processes(make, keys, count, place) if count else map(make, keys)
    return (_moved(place, batch) for batch in made)


def workers(place: torch.device) -> int:
    """How many processes make batches for models that run there: one fewer than the job has cores; none for a CPU."""
    if place.type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0))
    return min(max(1, min(cores, int(os.environ.get(CORES, cores))) - 1), MOST)


class _Made(Dataset[Any]):
    """What `make` makes of a key, as torch's loader asks for it."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __getitem__(self, key: Any) -> Any:
        return self._make(key)


def _by_processes(make: Callable[[Any], Any], keys: Iterable[Any], count: int, place: torch.device) -> Iterator[Any]:
    loader = DataLoader(
        _Made(make), batch_size=None, sampler=keys, num_workers=count, collate_fn=_as_it_is,
        pin_memory=place.type == "cuda", multiprocessing_context="fork",  # in no time, and `make` need not be pickled
        worker_init_fn=_obey, generator=Generator(),  # or torch would take a number from the stage's
    )  # fmt: skip
    with _unheard():
        made: Any = iter(loader)
    try:
        yield from made
    except (ConnectionError, EOFError) as error:  # or torch says that a process was killed, and by which signal
        raise RuntimeError("a process that makes batches ended before its batch came (out of memory?)") from error
    finally:
        made._shutdown_workers()  # as its __del__ does, which the traceback of an exception would put off


@contextmanager
def _unheard() -> Iterator[None]:
    """A block whose processes never hear what a scheduler signals to all processes of a job."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey(number: int) -> None:
    """Lets the stage end this process, in which SIGTERM is blocked."""
    Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass  # a scheduler signals all processes, and the stage may want to finish its step
    os._exit(0)


def _as_it_is(batch: Any) -> Any:
    return batch


def _moved(place: torch.device, batch: Any) -> Any:
    """The same tensors there."""
    if isinstance(batch, Mapping):
        return {name: _moved(place, value) for name, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_moved(place, value) for value in batch)
    return onto(place, batch) if isinstance(batch, Tensor) else batch
