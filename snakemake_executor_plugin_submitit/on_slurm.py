"""Jobs on SLURM: sbatch, squeue, scancel."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError

from . import revival, slurm
from .backends import Full
from .environment import require_one_cluster
from .launch import Launch, Sbatch
from .runner import Stages

RETRY = 2.0  # seconds between two attempts to reach SLURM


class Slurm:
    """SLURM by sbatch, squeue and scancel.

    OSError where they are not there, ValueError where the environment asks for other clusters.
    """

    bundles, longest_poll, is_slow, canceller = True, 60.0, True, "scancel"

    def __init__(self, signal_delay: int, max_timeouts: int, launch: Launch) -> None:
        slurm.require_programs()
        require_one_cluster()
        self.tell: Callable[[str], None] = lambda words: None
        self._signal_delay, self._max_timeouts, self._launch = signal_delay, max_timeouts, launch
        self._revived: Counter[str] = Counter()  # by job id
        self._stopped = Event()
        self.largest_array = slurm.largest_array()

    def room(self, gpus: int) -> bool:
        """Always: SLURM lets jobs wait."""
        return True

    def take_up(self, identifier: str) -> None:
        """Nothing: SLURM knows its jobs."""

    def submit(self, folder: Path, name: str, functions: Sequence[Callable[[], Any]], wanted: dict[str, Any]) -> str:
        """Waits while SLURM cannot be reached; what an attempt that failed did submit is cancelled before the next."""
        executor = Sbatch(folder, self._max_timeouts, self._launch)
        executor.set(wanted, name, self._signal_delay, isinstance(functions[0], Stages))
        while True:
            try:
                identifier = executor.send(functions)
                self.tell("")
                return identifier
            except (FailedJobError, FailedSubmissionError) as error:
                words = slurm.refusal(error)
                if not slurm.NOT_NOW.search(str(error)):
                    raise (Full if slurm.is_full(words) else ValueError)(words) from error
            self.tell(words)
            while not self.cancel_named(name):
                self._wait()
            self._wait()

    states = staticmethod(slurm.states)
    named = staticmethod(slurm.named)
    in_queue = staticmethod(slurm.in_queue)
    cancel = staticmethod(slurm.cancel)
    cancel_named = staticmethod(slurm.cancel_named)

    def revive(self, identifier: str) -> bool:
        """Excludes the nodes where the job could not be launched, and releases it; a few times."""
        if self._revived[identifier] >= revival.TIMES:
            return False
        self._revived[identifier] += revival.revive(identifier)  # else it was released meanwhile, or nobody answers
        return True

    def stop(self) -> None:
        """Lets no attempt to submit go on."""
        self._stopped.set()

    def _wait(self) -> None:
        if self._stopped.wait(RETRY):
            raise ValueError("Snakemake is ending")
