"""Whole networks from folders in transformers format, or an error that names what is missing."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from fusion.artifacts import read_json
from fusion.finding import open_file


def load(
    network: Any, folder: str | Path, overrides: Mapping[str, Any] | None = None, unused: Sequence[str] = ()
) -> Any:
    """The network (a class of transformers) with every weight from the folder's safetensors.

    overrides: values that replace those of config.json; unused: patterns of the names of weights that may be
    missing. ValueError if any other weight is missing or of another shape, a file is damaged, or an override unknown.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no *.safetensors, and no other format is read; convert the model first")
    for file in files:
        open_file(file)  # its error names the file, that of transformers does not
    kind = getattr(network, "config_class", None) or _config_class(folder)
    config, unknown = kind.from_pretrained(
        folder, local_files_only=True, return_unused_kwargs=True, **(overrides or {})
    )
    if unknown:
        raise ValueError(f"overrides {sorted(unknown)} are not in {folder}/config.json (config/backbones.yaml)")
    module, loaded = network.from_pretrained(
        folder, config=config, local_files_only=True, use_safetensors=True, dtype=torch.float32,
        ignore_mismatched_sizes=True, output_loading_info=True,
    )  # fmt: skip
    # transformers draws what is missing at random
    wrong = {name for name in loaded["missing_keys"] if not any(fnmatchcase(name, one) for one in unused)}
    wrong |= {name for name, *_ in loaded["mismatched_keys"]}
    if wrong:
        raise ValueError(f"{folder}: weights {sorted(wrong)} are missing, or not of the shape that config.json says")
    return module


def _config_class(folder: str | Path) -> Any:
    from transformers import AutoConfig

    return type(AutoConfig.for_model(read_json(Path(folder) / "config.json")["model_type"]))
