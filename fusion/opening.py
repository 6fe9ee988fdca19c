"""Models on disk that are to be merged: whole ones, adapters, and tied heads that some of them store."""

import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fusion.adapter import CONFIG, WEIGHTS, Adapter, is_adapter
from fusion.architecture import Config, embedding, is_copy, is_head, is_tied, read_config, untie
from fusion.checkpoint import Checkpoint


def open_pretrained(path: Path) -> Checkpoint:
    """The model that others were fine-tuned from; ValueError for an adapter."""
    if is_adapter(path) or path.name == WEIGHTS:
        raise ValueError(f"--pretrained {path} is a PEFT adapter; expected the model that it adapts")
    return Checkpoint(path)


def open_finetuned(path: Path, base: Checkpoint) -> Checkpoint | Adapter:
    """A fine-tuned model, or the model that an adapter makes of `base`, without a head that is tied in `base`."""
    if path.name == WEIGHTS:
        raise ValueError(f"{path} is the weights of a PEFT adapter; expected its folder, with {CONFIG}")
    if is_adapter(path):
        return Adapter(path, base)
    model, config = Checkpoint(path), read_config(base.path)
    return _without_tied_head(model, base, config) if is_tied(config, base) else model


def _without_tied_head(model: Checkpoint, base: Mapping[str, Tensor], config: Config) -> Checkpoint:
    """The model without a head that it stores and P does not; ValueError where that is not its embedding."""
    for head in [name for name in model if is_head(name) and name not in base]:
        table = embedding(model)
        if table is None or not is_copy(model, head, table):
            raise ValueError(
                f"{model!r} has {head!r}, which is tied to the input embedding in {base!r} and here differs from "
                f"{table!r}: the head was trained apart; as every model that has no head of its own, {untie(config)}"
            )
        print(f"left out: {head!r} of {model!r}, a copy of {table!r}, to which P ties it", file=sys.stderr)
        model = model.only(name for name in model if name != head)
    return model
