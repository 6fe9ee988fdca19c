"""The spaces in which models are merged: which coordinates a method sees, and how they read as weights.

weight   the parameters themselves; for adapters ΔW = s·B A of each adapted matrix.
adapter  A and B as parameters, as the L-LoRA paper merges them. The product of merged A and B holds cross terms
         of different tasks; where A does not train (L-LoRA) there are none and both spaces are linear in B.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from fusion.adapter import WEIGHTS
from fusion.checkpoint import Checkpoint
from fusion.device import device, on_device
from fusion.modes import scaling, updates
from fusion.vectors import TaskVectors


@dataclass(frozen=True)
class Space:
    """Task vectors in one space, and how parameters in it (a merged model) read as weights of the backbone."""

    vectors: TaskVectors
    to_weights: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def open_space(
    space: str, pretrained: Path, init: Path | None, finetuned: Sequence[Path], frozen: Sequence[str]
) -> Space:
    """The T fine-tuned models of one mode, in the space 'weight' or 'adapter', to be merged where models run.

    init is None for full fine-tuning, where all parameters train but those that a pattern of `frozen` matches.
    ValueError names the tensor and the files if one is missing, extra, of another shape, or not finite.
    """
    base = Checkpoint(pretrained)
    if init is None:
        trained = [name for name in base if not any(fnmatchcase(name, pattern) for pattern in frozen)]
        return Space(TaskVectors(base.only(trained), [Checkpoint(folder) for folder in finetuned], device()), dict)
    start, scale = Checkpoint(init), scaling(init)
    adapters = [Checkpoint(folder) for folder in finetuned]
    in_adapters = TaskVectors(start, adapters, device())
    deque(in_adapters.layers(), maxlen=0)  # reads all, and so checks all, where the file is still known
    initial = updates(start, scale)
    if space == "adapter":
        weights = on_device({name: base[name] for name in initial})
        return Space(in_adapters, lambda params: _add(weights, updates(params, scale)))
    deltas = [_subtract(updates(adapter, scale), initial) for adapter in adapters]
    return Space(TaskVectors.of_deltas(_add({n: base[n] for n in initial}, initial), deltas, device()), dict)


def read_weights(pretrained: Path, folder: Path) -> dict[str, Tensor]:
    """The weights that a fine-tuned or fused folder changes, by their names in the pre-trained model."""
    model = Checkpoint(folder)
    if model.path.name != WEIGHTS:
        return dict(model)
    change = updates(model, scaling(folder))
    base = Checkpoint(pretrained)
    return _add({name: base[name] for name in change}, change)


def _add(weights: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weights[name] + delta.to(weights[name].dtype) for name, delta in change.items()}


def _subtract(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor - other[name] for name, tensor in one.items()}
