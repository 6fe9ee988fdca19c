"""Whether models fit together, and what to pass where they do not."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fusion.checkpoint import is_float, shape

SHARD = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")


def fitting(
    pretrained: Mapping[str, Tensor], finetuned: Sequence[Mapping[str, Tensor]]
) -> tuple[Mapping[str, Tensor], ...]:
    """The fine-tuned models, which have the names, shapes and kinds of tensors that the pre-trained one has.

    ValueError names the tensor and both sides where they do not, and says what to pass in place of what is no model.
    """
    _check_mapping("pretrained", pretrained)
    if isinstance(finetuned, (Mapping, str, Path, nn.Module)):
        got = type(finetuned).__name__
        raise ValueError(f"finetuned: got one {got}, expected a list of models: [A, B], of a single one [A]")
    if finetuned is not None and (isinstance(finetuned, Tensor) or not isinstance(finetuned, Iterable)):
        raise ValueError(f"finetuned: got {type(finetuned).__name__}, expected a list of models: [A, B]")
    models = tuple(finetuned or ())
    if not models:
        raise ValueError("got no fine-tuned model, expected at least one")
    for place, model in enumerate(models):
        _check_mapping(f"finetuned[{place}]", model)
        _check_same_tensors(pretrained, model)
    return models


def require_wide(name: str, tensor: Tensor, model: Mapping[str, Tensor]) -> None:
    """ValueError for a tensor of eight bits, which has its scales elsewhere."""
    if tensor.dtype.itemsize == 1:
        raise ValueError(
            f"tensor {name!r} of {where(model)} is {tensor.dtype}; expected 16 bits or more: quantized weights must be "
            "converted back first"
        )


def not_finite(name: str, pretrained: Mapping[str, Tensor], finetuned: Sequence[Mapping[str, Tensor]]) -> ValueError:
    """The error about a task vector that is not finite: which model is to blame, or that no model is."""
    for model in (pretrained, *finetuned):
        if not torch.isfinite(model[name]).all():
            return ValueError(f"tensor {name!r} of {where(model)} holds NaN or infinity; expected finite numbers")
    return ValueError(f"the difference of tensor {name!r} overflows {pretrained[name].dtype}")


def where(model: Mapping[str, Tensor]) -> str:
    """The model's file, for errors."""
    return "a model in memory" if isinstance(model, dict) else repr(model)


def _check_mapping(name: str, model: object) -> None:
    """ValueError saying what to pass in place of what is no mapping of named tensors."""
    if isinstance(model, dict):
        wrong = next((key for key, value in model.items() if not isinstance(value, Tensor)), None)
        if wrong is not None:
            got = type(model[wrong]).__name__
            raise ValueError(f"{name}: {wrong!r} is a {got}, expected a tensor: pass the state_dict() itself")
    if isinstance(model, Mapping):
        return
    if isinstance(model, (str, Path)):
        raise ValueError(f"{name}: got a path, {str(model)!r}, expected named tensors: pass Checkpoint({str(model)!r})")
    if isinstance(model, nn.Module):
        raise ValueError(
            f"{name}: got the module {type(model).__name__}, expected named tensors: pass its state_dict()"
        )
    raise ValueError(f"{name}: got {type(model).__name__}, expected named tensors: a state_dict() or Checkpoint(path)")


def _check_same_tensors(pretrained: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(pretrained.keys() - model.keys()), sorted(model.keys() - pretrained.keys())
    if missing or extra:
        raise ValueError(
            f"{where(model)} against {where(pretrained)}: missing tensors {missing[:3]}, extra tensors {extra[:3]}; "
            f"expected the same names{_advice(model) or _advice(pretrained)}"
        )
    for name in pretrained:
        got, expected = shape(model, name), shape(pretrained, name)
        if got != expected:
            raise ValueError(
                f"tensor {name!r}: got shape {got} in {where(model)}, expected {expected} as in {where(pretrained)}"
            )
        if is_float(model, name) != is_float(pretrained, name):
            types = [("no float", "a float")[is_float(side, name)] for side in (model, pretrained)]
            raise ValueError(
                f"tensor {name!r}: got {types[0]} in {where(model)}, expected {types[1]} as in {where(pretrained)}; "
                "only floats can be merged (quantized weights must be converted back first)"
            )


def _advice(model: Mapping[str, Tensor]) -> str:
    """What to pass in place of what is no whole model, as the end of an error; nothing where it may be one."""
    file = None if isinstance(model, dict) else Path(repr(model))
    if any(".lora_" in name for name in model):
        folder = repr(str(file.parent)) if file else "FOLDER"
        return f"; {where(model)} is a PEFT adapter: pass Adapter({folder}, P), of fusion.adapter"
    if file and SHARD.fullmatch(file.name):
        return f"; {file} is one file of a model that has several: give its folder, {file.parent}"
    return ""
