"""Loops that are compiled: a formula in one pass, where numpy or torch would write every step of it to memory."""

from collections.abc import Callable
from functools import cache, wraps
from threading import Lock
from typing import ParamSpec, TypeVar

BLOCK = 1024  # numbers that a loop works on at a time: they stay in the core's own cache
_making = Lock()

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function` as machine code, made by numba at its first call and kept for other processes; it releases the GIL.

    It may use numbers and numpy arrays, as numba's nopython mode does.
    """

    @cache
    def machine_code() -> Callable[P, R]:
        from numba import njit  # half a second that most commands need not wait for

        try:
            return njit(nogil=True, cache=True)(function)
        except RuntimeError:  # neither the package's folder nor the user's can be written: for this process alone
            return njit(nogil=True)(function)

    @wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        with _making:  # or each thread would make its own
            code = machine_code()
        return code(*arguments, **named)

    return call
