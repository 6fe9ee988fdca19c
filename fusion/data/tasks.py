"""Reading prepared tasks. Labels are a separate read, so that what must not see them cannot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from torch import Generator, Tensor

from fusion.artifacts import read_json

INPUT = {"text": "text"}  # modality -> column


@dataclass(frozen=True)
class TaskData:
    """One prepared task: a folder with a data set a split, and info.json."""

    folder: Path

    @property
    def info(self) -> dict[str, Any]:
        """The facts that were written with the data: name, classes, words, prompt, counts, fingerprint."""
        return read_json(self.folder / "info.json")

    def inputs(self, split: str, limit: int | None = None) -> Sequence[Any]:
        """The first `limit` inputs of a split; any prefix is a random sample. No label is read."""
        data = self._split(split, limit)
        return data[INPUT[self.info["modality"]]][:]

    def labels(self, split: str, limit: int | None = None) -> Tensor:
        """Their class indices (n,)."""
        return torch.tensor(self._split(split, limit)["label"][:])

    def _split(self, split: str, limit: int | None) -> Dataset:
        data = load_from_disk(str(self.folder / split))
        assert isinstance(data, Dataset)
        return data.select(range(min(limit or len(data), len(data))))


def shuffled(count: int, batch_size: int, rng: Generator) -> Iterator[list[int]]:
    """Endless batches of indices into `count` examples: every epoch in a new order, none repeated within it."""
    pending: list[int] = []
    while True:
        while len(pending) < batch_size:
            pending += torch.randperm(count, generator=rng).tolist()
        yield pending[:batch_size]
        pending = pending[batch_size:]
