"""Runs the jobs of `snakemake --executor forkserver` in warm worker processes on this machine.

A rule with `params: stage="module:function"` becomes a process forked from a server that has already imported
the modules of `--forkserver-preload`; it starts in milliseconds. Any other rule runs as with `-e local`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .executor import Executor, ExecutorSettings, common_settings

__all__ = ["Executor", "ExecutorSettings", "common_settings"]


def __getattr__(name: str) -> Any:
    """What Snakemake looks up in a plugin, imported only then: workers import this package, not Snakemake."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import executor

    return getattr(executor, name)
