"""Reading prepared tasks. Labels are a separate read, so that what must not see them cannot."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Generator, Tensor

from fusion.artifacts import read_json
from fusion.data.images import Picture, Prepared
from fusion.job import Job

if TYPE_CHECKING:  # a machine that only measures training need not have it
    from datasets import Dataset


@dataclass(frozen=True)
class TaskData:
    """One prepared task: a folder with a data set a split, and info.json.

    pixels: by split, the file of its first pictures as the model that reads them takes them, (N, 3, H, W) uint8.
    """

    folder: Path
    pixels: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job) -> list[Self]:
        """The tasks of a job's input `data`, each with those of the input `pixels` that are its own."""
        found: dict[str, dict[str, Path]] = {}
        for folder in map(Path, job.paths("pixels")):
            info = read_json(folder / "info.json")
            found.setdefault(info["task"], {})[info["split"]] = folder / "pixels.npy"
        tasks = [cls(Path(path)) for path in job.paths("data")]
        return [cls(task.folder, found.get(task.info["name"], {})) for task in tasks] if found else tasks

    @property
    def info(self) -> dict[str, Any]:
        """The facts that were written with the data: name, classes, words, prompts, counts, fingerprint."""
        return read_json(self.folder / "info.json")

    def inputs(self, split: str, limit: int | None = None) -> Sequence[Any]:
        """The first `limit` inputs of a split; any prefix is a random sample. No label is read."""
        data = self._split(split, limit)
        if self.info["modality"] == "text":
            return data["text"][:]
        return Pictures(data, f"{self.folder}/{split}", self.pixels.get(split))

    def labels(self, split: str, limit: int | None = None) -> Tensor:
        """Their class indices (n,)."""
        return torch.tensor(self._split(split, limit)["label"][:])

    def _split(self, split: str, limit: int | None) -> "Dataset":
        from datasets import Dataset, load_from_disk

        data = load_from_disk(str(self.folder / split))
        assert isinstance(data, Dataset)
        return data.select(range(min(limit or len(data), len(data))))


class Pictures(Sequence[Picture | Prepared]):
    """The pictures of a split, read when asked for: prepared as far as the file `pixels` goes, the others encoded."""

    def __init__(self, data: "Dataset", name: str, pixels: Path | None = None) -> None:
        from datasets import Image

        self._data, self._name = data.cast_column("image", Image(decode=False)), name
        self._pixels = np.load(pixels, mmap_mode="r") if pixels else ()

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < len(self._pixels):
            return self._pixels[index]
        return Picture(f"{self._name}/{index}", self._data[index]["image"]["bytes"])


def shuffled(count: int, batch_size: int, rng: Generator) -> Iterator[list[int]]:
    """Endless batches of indices into `count` examples: every epoch in a new order, none repeated within it."""
    pending: list[int] = []
    while True:
        while len(pending) < batch_size:
            pending += torch.randperm(count, generator=rng).tolist()
        yield pending[:batch_size]
        pending = pending[batch_size:]
