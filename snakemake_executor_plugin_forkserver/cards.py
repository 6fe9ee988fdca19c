"""The GPUs of this machine, and which of them a job may use. Imports neither Snakemake nor torch."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Condition

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists."""
    if (said := os.environ.get(VISIBLE)) is not None:
        return [one.strip() for one in said.split(",") if one.strip() not in ("", "-1", "NoDevFiles")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False).stdout
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]


class Cards:
    """GPUs that are lent to jobs, each to at most `shared` at a time; may be asked by several threads."""

    def __init__(self, names: Sequence[str], shared: int = 1) -> None:
        self.names, self._room = list(names), dict.fromkeys(names, shared)
        self._changed = Condition()

    @contextmanager
    def lent(self, count: int) -> Iterator[dict[str, str]]:
        """The environment of a job that asks for so many GPUs; waits until they are free.

        Where there are none at all, everything is as it was. ValueError where there are fewer than it asks for.
        """
        if not self.names:
            yield {}
            return
        if count > len(self.names):
            raise ValueError(f"got gpus: {count}, expected at most the {len(self.names)} GPUs of this machine")
        with self._changed:
            self._changed.wait_for(lambda: len(self._free()) >= count)
            taken = self._free()[:count]
            self._give(taken, -1)
        try:
            yield {VISIBLE: ",".join(taken)}
        finally:
            with self._changed:
                self._give(taken, 1)
                self._changed.notify_all()

    def _free(self) -> list[str]:
        """Those with room for one more job, the one with most room first."""
        free = (name for name, room in self._room.items() if room > 0)
        return sorted(free, key=lambda name: -self._room[name])

    def _give(self, names: Sequence[str], room: int) -> None:
        for name in names:
            self._room[name] += room
