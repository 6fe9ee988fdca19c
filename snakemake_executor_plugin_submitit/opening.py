"""The place where jobs run, as the settings say."""

from collections.abc import Callable

from snakemake_interface_common.exceptions import WorkflowError

from . import environment
from .backends import Backend
from .launch import Launch
from .on_host import Local
from .on_slurm import Slurm
from .settings import ExecutorSettings


def open_backend(settings: ExecutorSettings, precommand: str, tell: Callable[[str], None]) -> Backend:
    """SLURM or this machine, WorkflowError if it is not there; tell: is told what of the environment does not count."""
    launch = Launch(settings.setup, settings.python, precommand)
    if settings.cluster == "local":
        return Local(settings.signal_delay, settings.max_timeouts, launch, settings.devices)
    if settings.cluster != "slurm":
        raise WorkflowError(f"submitit-cluster: got {settings.cluster!r}, expected 'slurm' or 'local'")
    if words := environment.dropped():
        tell(words)
    try:
        return Slurm(settings.signal_delay, settings.max_timeouts, launch)
    except OSError as error:
        raise WorkflowError(f"no SLURM here ({error}); expected sbatch and squeue on the PATH") from error
    except ValueError as error:
        raise WorkflowError(str(error)) from error
