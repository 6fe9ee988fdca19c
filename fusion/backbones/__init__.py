"""Backbones: one class a family of models, all with the interface of `Backbone`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from fusion.backbones.sentence_encoder import SentenceEncoder
from fusion.backbones.vision import Clip, DinoV2
from fusion.device import device

KINDS = {"sentence_encoder": SentenceEncoder, "clip": Clip, "dinov2": DinoV2}


class Backbone(Protocol):
    """What a stage needs of a model: inputs to a batch, and (params, batch, head) to logits.

    `collate` makes tensors in the CPU's memory, wherever the module is: it also runs in processes without a GPU.
    """

    module: nn.Module

    def save(self, folder: str | Path) -> None: ...
    def collate(self, inputs: Sequence[Any]) -> Any: ...
    def sizes(self, inputs: Sequence[Any]) -> list[int]: ...
    def token_mask(self, batch: Any) -> Tensor: ...
    def features(self, params: Mapping[str, Tensor], batch: Any) -> Tensor: ...
    def scores(self, features: Tensor, head: Tensor) -> Tensor: ...
    def logits(self, params: Mapping[str, Tensor], batch: Any, head: Tensor) -> Tensor: ...


def open_backbone(folder: str | Path, row: Mapping[str, Any]) -> Backbone:
    """The backbone of a config row, with the weights in `folder`, in evaluation mode on this machine's device.

    One that is to be compiled is so at its first batch; on a CPU that takes a C++ compiler.
    """
    backbone: Any = KINDS[row["kind"]](folder, **row["options"])
    backbone.module.to(device())
    if row.get("compile"):
        backbone.module.compile()
    return backbone
