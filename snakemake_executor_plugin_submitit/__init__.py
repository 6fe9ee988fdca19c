"""Runs the jobs of `snakemake --executor submitit` on SLURM, or in processes of this machine, through submitit.

A rule with `params: stage="module:function"` is called in the allocation itself; any other rule and every group runs
as a Snakemake of its own there. What was submitted is kept in a journal: a main process that died and is started
again takes up its jobs where they are.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .executor import Executor, ExecutorSettings, common_settings

__all__ = ["Executor", "ExecutorSettings", "common_settings"]


def __getattr__(name: str) -> Any:
    """What Snakemake looks up in a plugin, imported only then: jobs import this package, not Snakemake."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import executor

    return getattr(executor, name)
