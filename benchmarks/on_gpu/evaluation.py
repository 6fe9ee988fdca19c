"""Evaluation from prepared pictures, against a bare loop that computes the logits of batches on the device."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fusion.device import autocast
from fusion.scoring import batched, predict
from on_gpu.measure import side_by_side
from on_gpu.prepared import Tower, pictures
from on_gpu.setup import Figures, Rows, Setup

EVALUATION = "evaluation"
AT_LEAST = 0.95


def rows(setup: Setup) -> Rows:
    """The one row."""
    yield EVALUATION, partial(compare, setup)


def compare(setup: Setup) -> Figures:
    """Pictures a second of a model that makes its batches, of a further one, which finds them, and of the bare loop."""
    backbone, head = Tower(setup.tower()), setup.head()
    weights = {name: parameter.detach() for name, parameter in backbone.module.named_parameters()}
    inputs, size = pictures(setup, setup.sizes.pictures), setup.sizes.batch
    made = batched(backbone, inputs, size)
    predict(backbone, weights, head, made)
    works = {
        "first": lambda: predict(backbone, weights, head, batched(backbone, inputs, size)),
        "further": lambda: predict(backbone, weights, head, made),
        "bare": partial(bare, backbone, weights, head, [batch for _, batch in made.batches]),
    }
    times = side_by_side(works, setup.place, setup.sizes.repeats)
    return {
        "ms a batch": setup.goal(1000 * times["further"] * size / len(inputs)),
        **{f"pictures/s, {name}": setup.goal(len(inputs) / spent) for name, spent in times.items()},
        "of a bare loop": setup.goal(times["bare"] / times["further"], at_least=AT_LEAST),
        "of a bare loop, first": setup.goal(times["bare"] / times["first"]),
    }


@torch.inference_mode()
def bare(backbone: Tower, weights: Mapping[str, Tensor], head: Tensor, batches: Sequence[Any]) -> None:
    """The logits of batches."""
    for batch in batches:
        with autocast():
            backbone.logits(weights, batch, head)
