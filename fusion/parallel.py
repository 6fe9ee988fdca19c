"""Fast passes over pieces of tensors, spread over the threads that torch may use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Condition
from typing import Any, Protocol

import torch
from torch import Tensor

AHEAD = 2  # items a thread, in work or waiting to be taken
RUNS_AHEAD = 8  # the same of runs, which are small: enough for all threads while a whole tensor is being written
TOGETHER = 200 << 20  # bytes of task vectors that the layers in work hold together


class Map(Protocol):
    """The built-in `map` of one iterable."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]: ...


@contextmanager
def workers(place: torch.device, ahead: int = AHEAD) -> Iterator[Map]:
    """A `map` in the order of its items: one thread a core that torch uses, each with one core of its own.

    A piece that fits in a core's cache gains nothing from torch's own threads. The results do not depend on
    the number of threads; `ahead` items a thread are worked on ahead, so that few wait in memory. place: where the
    items are computed; a GPU has its own threads, and gets its work from this one alone.
    """
    count = torch.get_num_threads()
    if count == 1 or place.type != "cpu":
        yield map
        return
    torch.set_num_threads(1)  # also of this thread: the cores are taken, and threads that wait for theirs spin
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield partial(_ahead, pool, ahead * count)
    finally:
        pool.shutdown(cancel_futures=True)  # what nobody will take need not be done
        torch.set_num_threads(count)  # the number is also the default of threads that start later


def _ahead(pool: ThreadPoolExecutor, most: int, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class Budget:
    """A number of bytes that threads share; who wants more than all of them waits until it is alone."""

    def __init__(self, size: int) -> None:
        self._size, self._taken, self._changed = size, 0, Condition()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Waits until there are so many, and has them within the `with`."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + size <= self._size)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


def is_finite(*tensors: Tensor) -> bool:
    """Whether no element of tensors of one type is NaN or infinite: one pass for sums, and a closer look where one
    is not finite."""
    sums = torch.stack([tensor.sum() for tensor in tensors])
    return bool(torch.isfinite(sums).all()) or all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
