"""Weights that are published elsewhere, as folders in transformers format: data alone, nothing that is executed."""

from pathlib import Path

import numpy as np
import torch

from fusion.checkpoint import save_tensors
from fusion.model_rows import WeightsSource

FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # weights, configuration, tokenizer: no pickles, no code


def from_hub(name: str, revision: str | None) -> Path:
    """The hub's model at a revision, in the hub's own cache; ValueError where it is not there and cannot be had."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except Exception as error:  # the hub's own, and those of the network
        raise ValueError(
            f"cannot get the model {name} at revision {revision or 'main'}: {error}. Is there a network, or a copy in "
            "the hub's cache (HF_HOME)?"
        ) from error
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"the model {name} has no *.safetensors at revision {revision or 'main'}, and pickles are not read; give "
            "a `revision` that has them, or another source (config/backbones.yaml)"
        )
    return folder


def commit(source: WeightsSource, folder: Path) -> str | None:
    """The hub's commit of what was read from the source into `folder`; None for what is of no hub."""
    if source.hub is not None:
        return folder.name  # of a snapshot in the hub's cache
    if source.open_clip is None or source.pretrained is None:
        return None
    import open_clip
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    place = (open_clip.get_pretrained_cfg(source.open_clip, source.pretrained) or {}).get("hf_hub", "")
    if not place:
        return None
    try:
        return Path(snapshot_download(place.rpartition("/")[0], local_files_only=True)).name
    except LocalEntryNotFoundError:  # it came from another place than the hub
        return None


def from_onnx(file: Path, folder: Path) -> Path:
    """Writes the DINOv2 inside an ONNX graph, whose initializers begin with `backbone.`, to the folder.

    Matrices of linear layers stand transposed under generated names, which the MatMul nodes tell; class token and
    position embeddings are constants. The mask token, which no picture needs, is zero.
    """
    import onnx
    from onnx import numpy_helper
    from transformers import BitImageProcessor, Dinov2Config

    graph = onnx.load(str(file)).graph
    found = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    tensors = {name.removeprefix("backbone."): value for name, value in found.items() if name.startswith("backbone.")}
    for node in graph.node:
        layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in found:
            tensors[f"{_layer(layer)}.weight"] = found[node.input[1]].T
    tokens = tensors.pop("embeddings.cls_token")
    positions = [value for name, value in found.items() if value.ndim == 3 and value.shape[0] == 1 and "::" in name]
    first, rest = sorted(positions, key=lambda value: value.shape[1])
    width, side = tokens.shape[-1], round(rest.shape[1] ** 0.5)
    tensors["embeddings.cls_token"] = tokens
    tensors["embeddings.position_embeddings"] = np.concatenate([first, rest], axis=1)
    tensors["embeddings.mask_token"] = np.zeros((1, width), np.float32)
    patch = tensors["embeddings.patch_embeddings.projection.weight"].shape[-1]
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layer."))
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, image_size=side * patch,
        patch_size=patch,
    )  # fmt: skip
    config.save_pretrained(folder)
    save_tensors(folder / "model.safetensors", {name: torch.tensor(value) for name, value in tensors.items()})
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, as its authors' transforms have them
    BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, image_mean=mean, image_std=std
    ).save_pretrained(folder)
    return folder


def _layer(path: str) -> str:
    """A layer's name in transformers, of its path in the graph: `encoder/layer.0/attention/…` repeats some parts."""
    return path.replace("encoder.layer.layer.", "encoder.layer.")
