"""Batches made while the one before them is used."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fusion.device import device

Item = TypeVar("Item")
DEPTH = {"cuda": 2, "cpu": 0}  # on a CPU, what makes the next batch takes the cores from the present one


def ahead(items: Iterable[Item], depth: int | None = None) -> Iterator[Item]:
    """The same items in the same order; a thread makes up to `depth` of them before they are asked for.

    What `items` raises is raised where its item would come. The thread ends with the iterator: when that is
    exhausted, closed, or no longer referred to. depth: 0 is without a thread; DEPTH of this device where none is given.
    """
    if depth is None:
        depth = DEPTH.get(device().type, 0)
    return _made_ahead(iter(items), depth) if depth else iter(items)


def _made_ahead(items: Iterator[Item], depth: int) -> Iterator[Item]:
    end: Any = object()
    with ThreadPoolExecutor(1, "ahead") as thread:
        made = deque(thread.submit(next, items, end) for _ in range(depth))
        try:
            while (item := made.popleft().result()) is not end:
                made.append(thread.submit(next, items, end))
                yield item
        finally:
            for future in made:
                future.cancel()
