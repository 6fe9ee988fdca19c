"""Predictions of a model on labelled splits, and their accuracy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion.ahead import ahead
from fusion.backbones import Backbone
from fusion.device import autocast
from fusion.objectives import entropy

KEPT = 256 << 20  # bytes of collated batches of a task that stay in memory


class Batched:
    """Inputs of one task in batches of similar size, read by many models; made once, as far as memory allows."""

    def __init__(self, collate: Callable[[list[Any]], Any], inputs: Sequence[Any], parts: list[list[int]]) -> None:
        self._collate, self._inputs, self._parts = collate, inputs, parts
        self._made: dict[int, Any] = {}
        self._room = KEPT
        self.count = len(inputs)

    @property
    def batches(self) -> Iterator[tuple[list[int], Any]]:
        """Indices of the examples, and the collated batch."""
        kept = dict(self._made)
        made = ahead(self._make, [part for number, part in enumerate(self._parts) if number not in kept])
        for number, part in enumerate(self._parts):
            batch = kept[number] if number in kept else next(made)
            if self._room > 0 and number not in self._made:
                self._made[number] = batch
                self._room -= sum(tensor.nbytes for tensor in batch.values())
            yield part, batch

    def _make(self, part: list[int]) -> Any:
        return self._collate([self._inputs[i] for i in part])


@dataclass(frozen=True)
class Predictions:
    """Per example, in the order of the split: predicted class (n,), entropy of the prediction in nats (n,)."""

    labels: Tensor
    entropies: Tensor

    def correct(self, labels: Tensor) -> int:
        """How many agree with the true classes (n,)."""
        return int((self.labels == labels).sum())


def batched(backbone: Backbone, inputs: Sequence[Any], batch_size: int) -> Batched:
    """The inputs sorted by size, to be collated when they are read."""
    sizes = backbone.sizes(inputs)
    order = sorted(range(len(inputs)), key=sizes.__getitem__)
    parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return Batched(backbone.collate, inputs, parts)


def predict(backbone: Backbone, weights: Mapping[str, Tensor], head: Tensor, inputs: Batched) -> Predictions:
    """The predictions of the backbone with `weights` in place of its own where named."""
    indices, labels, entropies = [], [], []
    for part, logits in _logits(backbone, weights, head, inputs):
        indices += part
        labels.append(logits.argmax(-1))
        entropies.append(entropy(logits))
    order = torch.tensor(indices).argsort()  # on the CPU, where a GPU is waited for once and not after every batch
    return Predictions(torch.cat(labels).cpu()[order], torch.cat(entropies).cpu()[order])


@torch.inference_mode()
def _logits(
    backbone: Backbone, weights: Mapping[str, Tensor], head: Tensor, inputs: Batched
) -> Iterator[tuple[list[int], Tensor]]:
    for indices, batch in inputs.batches:
        with autocast():
            yield indices, backbone.logits(weights, batch, head).float()
