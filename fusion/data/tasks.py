"""Reading prepared tasks. Labels are a separate read, so that what must not see them cannot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from fusion.artifacts import read_json
from fusion.data.images import Picture

if TYPE_CHECKING:  # a machine that only measures training need not have it
    from datasets import Dataset


@dataclass(frozen=True)
class TaskData:
    """One prepared task: a folder with a data set a split, and info.json."""

    folder: Path

    @property
    def info(self) -> dict[str, Any]:
        """The facts that were written with the data: name, classes, words, prompts, counts, fingerprint."""
        return read_json(self.folder / "info.json")

    def inputs(self, split: str, limit: int | None = None) -> Sequence[Any]:
        """The first `limit` inputs of a split; any prefix is a random sample. No label is read."""
        data = self._split(split, limit)
        return data["text"][:] if self.info["modality"] == "text" else Pictures(data, f"{self.folder}/{split}")

    def labels(self, split: str, limit: int | None = None) -> Tensor:
        """Their class indices (n,)."""
        return torch.tensor(self._split(split, limit)["label"][:])

    def _split(self, split: str, limit: int | None) -> "Dataset":
        from datasets import Dataset, load_from_disk

        data = load_from_disk(str(self.folder / split))
        assert isinstance(data, Dataset)
        return data.select(range(min(limit or len(data), len(data))))


class Pictures(Sequence[Picture]):
    """The pictures of a split, read when asked for and not decoded."""

    def __init__(self, data: "Dataset", name: str) -> None:
        from datasets import Image

        self._data, self._name = data.cast_column("image", Image(decode=False)), name

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Picture(f"{self._name}/{index}", self._data[index]["image"]["bytes"])


def shuffled(count: int, batch_size: int, rng: Generator) -> Iterator[list[int]]:
    """Endless batches of indices into `count` examples: every epoch in a new order, none repeated within it."""
    pending: list[int] = []
    while True:
        while len(pending) < batch_size:
            pending += torch.randperm(count, generator=rng).tolist()
        yield pending[:batch_size]
        pending = pending[batch_size:]
