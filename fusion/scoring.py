"""Predictions of a model on labelled splits, and their accuracy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion.backbones import Backbone
from fusion.device import autocast
from fusion.objectives import entropy


@dataclass(frozen=True)
class Batched:
    """Inputs of one task in batches of similar size, made once and read by many models."""

    batches: list[tuple[list[int], Any]]  # indices of the examples, and the collated batch
    count: int


@dataclass(frozen=True)
class Predictions:
    """Per example, in the order of the split: predicted class (n,), entropy of the prediction in nats (n,)."""

    labels: Tensor
    entropies: Tensor

    def correct(self, labels: Tensor) -> int:
        """How many agree with the true classes (n,)."""
        return int((self.labels == labels).sum())


def batched(backbone: Backbone, inputs: Sequence[Any], batch_size: int) -> Batched:
    """The inputs sorted by size and collated."""
    order = sorted(range(len(inputs)), key=lambda i: backbone.size(inputs[i]))
    parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return Batched([(part, backbone.collate([inputs[i] for i in part])) for part in parts], len(inputs))


def predict(backbone: Backbone, weights: Mapping[str, Tensor], head: Tensor, inputs: Batched) -> Predictions:
    """The predictions of the backbone with `weights` in place of its own where named."""
    labels = torch.empty(inputs.count, dtype=torch.int64)
    entropies = torch.empty(inputs.count)
    for indices, logits in _logits(backbone, weights, head, inputs):
        labels[indices], entropies[indices] = logits.argmax(-1).cpu(), entropy(logits).cpu()
    return Predictions(labels, entropies)


@torch.inference_mode()
def _logits(
    backbone: Backbone, weights: Mapping[str, Tensor], head: Tensor, inputs: Batched
) -> Iterator[tuple[list[int], Tensor]]:
    for indices, batch in inputs.batches:
        with autocast():
            yield indices, backbone.logits(weights, batch, head).float()
