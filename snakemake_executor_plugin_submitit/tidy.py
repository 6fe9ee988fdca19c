"""The files of submissions that are over: removed at once where all went well, else after some days."""

import shutil
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from . import outcome
from .entries import COPY, is_batch

DAY, FRESH = 86400, 60  # seconds; a folder that is younger may be of a batch that is being submitted


class Tidying:
    """Removes what is in `folder` of every batch but the open ones.

    open_: says which these are. keep: days for which those stay of which not all jobs ended well.
    """

    def __init__(self, folder: Path, open_: Callable[[], Collection[str]], keep: float) -> None:
        self._folder, self._open, self._keep = folder, open_, keep
        self._not_well: set[str] = set()

    def tidy(self) -> None:
        """Removes what can be removed now; a file system that is away, or a process at work, is left alone."""
        with suppress(OSError):
            there = list(self._folder.iterdir())
            open_ = self._open()  # after the list was made: a batch that began since is not in it
            for path in there:
                if path.name.startswith("journal.damaged-"):
                    if self._is_old(path):
                        path.unlink(missing_ok=True)
                elif path.name not in open_ and is_batch(path) and (self._is_old(path) or self._went_well(path)):
                    shutil.rmtree(path, ignore_errors=True)

    def _is_old(self, path: Path) -> bool:
        return time.time() - path.stat().st_mtime > max(self._keep * DAY, FRESH)

    def _went_well(self, batch: Path) -> bool:
        """Whether all jobs of the batch ended well, and their processes need its files no more."""
        names = {path.name for path in batch.iterdir()}
        submitted = [name.removesuffix("_submitted.pkl") for name in names if name.endswith("_submitted.pkl")]
        is_at_work = COPY in names or not all(f"{identifier}_0_result.pkl" in names for identifier in submitted)
        if batch.name in self._not_well or not submitted or is_at_work:
            return False
        try:
            begun = [name.removesuffix(".started") for name in names if name.endswith(".started")]
            found = [outcome.read(batch / f"{name}.json") for name in begun]
        except outcome.Damaged:
            found = [None]
        well = all(one is not None and not one.error for one in found)
        if not well:
            self._not_well.add(batch.name)
        return well
