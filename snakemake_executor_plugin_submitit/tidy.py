"""The files of submissions that are over: removed at once where all went well, else after some days."""

import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from . import outcome
from .entries import COPY

DAY = 86400  # seconds


def tidy(folder: Path, open_: Collection[str], keep: float) -> None:
    """Removes what is in `folder` of every batch but the open ones; keep: days for which failed ones stay."""
    with suppress(OSError):  # a network file system may be away, and there is a next time
        for path in folder.iterdir():
            if path.name in open_ or not (path.is_dir() or path.name.startswith("journal.damaged-")):
                continue
            if time.time() - path.stat().st_mtime > keep * DAY or (path.is_dir() and _went_well(path)):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _went_well(batch: Path) -> bool:
    """Whether all jobs of the batch ended well, and their processes need its files no more."""
    names = {path.name for path in batch.iterdir()}
    submitted = [name.removesuffix("_submitted.pkl") for name in names if name.endswith("_submitted.pkl")]
    if not submitted or not all(f"{identifier}_0_result.pkl" in names for identifier in submitted):
        return False
    outcomes = [name.removesuffix(".started") + ".json" for name in names if name.endswith(".started")]
    with suppress(outcome.Damaged):
        found = [outcome.read(batch / name) for name in outcomes]
        return COPY not in names and all(one is not None and not one.error for one in found)
    return False
