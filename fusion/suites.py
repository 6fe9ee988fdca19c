"""The tasks of a suite as the fusing and evaluating stages read them: data, frozen heads, batches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Generator, Tensor

from fusion.ahead import ahead
from fusion.backbones import Backbone
from fusion.checkpoint import Checkpoint
from fusion.data.tasks import TaskData, shuffled
from fusion.device import device
from fusion.job import Job
from fusion.scoring import Batched, Predictions, batched, predict


@dataclass(frozen=True)
class Scored:
    """The first examples of one task's split, batched once to be read by many models."""

    task: str
    head: Tensor  # (C, d)
    inputs: Batched
    labels: Tensor  # (n,)
    fingerprint: str  # of the task's data

    def predict(self, backbone: Backbone, weights: Mapping[str, Tensor]) -> Predictions:
        """What the backbone with these weights predicts for them."""
        return predict(backbone, weights, self.head, self.inputs)

    def accuracy(self, backbone: Backbone, weights: Mapping[str, Tensor]) -> float:
        """The fraction predicted rightly."""
        return self.predict(backbone, weights).correct(self.labels) / len(self.labels)


@dataclass(frozen=True)
class Suite:
    """T tasks in the order of their task vectors."""

    tasks: list[str]
    data: list[TaskData]
    heads: list[Tensor]

    @classmethod
    def of(cls, job: Job) -> "Suite":
        """The suite of a job: inputs `data`, `pixels` and `heads`, in the order of params.settings.tasks."""
        heads = [Checkpoint(path)["weight"].to(device()) for path in job.paths("heads")]
        return cls(job.params["settings"]["tasks"], TaskData.of(job), heads)

    def only(self, *tasks: str) -> "Suite":
        """The suite of these tasks; of those alone that are in this one."""
        chosen = [i for i, name in enumerate(self.tasks) if name in tasks]
        names, data, heads = self.tasks, self.data, self.heads
        return Suite([names[i] for i in chosen], [data[i] for i in chosen], [heads[i] for i in chosen])

    def scored(self, backbone: Backbone, split: str, limit: int | None, batch_size: int) -> Iterator[Scored]:
        """The first `limit` examples of every task's split, in batches; one task at a time."""
        for task, data, head in zip(self.tasks, self.data, self.heads, strict=True):
            inputs, labels = data.inputs(split, limit), data.labels(split, limit)
            yield Scored(task, head, batched(backbone, inputs, batch_size), labels, data.info["fingerprint"])

    def unlabelled(self, backbone: Backbone, split: str, batch_size: int, seed: int) -> Iterator[Any]:
        """Endless batches of `batch_size` inputs of every task, those of the first task first, each task's shuffled.

        Labels are never read.
        """
        inputs = [data.inputs(split) for data in self.data]
        orders = [shuffled(len(one), batch_size, Generator().manual_seed(seed)) for one in inputs]

        def make(indices: tuple[list[int], ...]) -> Any:
            return backbone.collate([one[i] for one, chosen in zip(inputs, indices, strict=True) for i in chosen])

        return ahead(make, zip(*orders, strict=True))
