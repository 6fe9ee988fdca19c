"""Matrices of one shape, updated together: a GPU decomposes a dozen in the time of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusion.checkpoint import is_float, shape

if TYPE_CHECKING:
    from fusion.vectors import Layer, TaskVectors

AT_ONCE = 1 << 30  # bytes of the task vectors of matrices that are updated together


def updates(taus: TaskVectors, update: Callable[[Layer], Tensor]) -> Iterator[tuple[Layer, Tensor]]:
    """Every floating-point layer, without its task vectors, and its update (*shape), in their order."""
    names = [name for name in taus.pretrained if is_float(taus.pretrained, name)]
    sizes = [shape(taus.pretrained, name) for name in names]
    made: dict[str, tuple[Layer, Tensor]] = {}
    for place, (name, size) in enumerate(zip(names, sizes, strict=True)):
        if name not in made:
            most = AT_ONCE // max(1, 4 * len(taus) * prod(size)) if len(size) == 2 else 1
            rest = zip(names[place:], sizes[place:], strict=True)
            alike = [other for other, its in rest if its == size and other not in made]
            made |= _together(taus, update, alike[: max(1, most)])
        yield made.pop(name)


def _together(
    taus: TaskVectors, update: Callable[[Layer], Tensor], names: list[str]
) -> dict[str, tuple[Layer, Tensor]]:
    layers = [taus.layer(name, taus.pretrained[name].detach()) for name in names]
    if len(layers) == 1:
        found = [update(layers[0])]
    else:
        start, each = torch.stack([one.pretrained for one in layers]), torch.stack([one.taus for one in layers], dim=1)
        found = update(layers[0]._replace(pretrained=start, taus=each, is_batch=True)).unbind()
    bare = (layer._replace(taus=layer.pretrained.new_empty(0)) for layer in layers)
    return {layer.name: (layer, one) for layer, one in zip(bare, found, strict=True)}
