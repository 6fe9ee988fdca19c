"""CLIP models of open_clip, rewritten as transformers has them: other names and shapes, the same features.

open_clip's attention has one fused projection for query, key and value, of which an adapter would have to train some
rows; transformers' has three layers, which PEFT adapts, and whose adapters others can load.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusion.backbones.pixels import OPEN_CLIP
from fusion.checkpoint import save_tensors

BLOCK = {  # of a residual block: open_clip's names and transformers'
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
VISION = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",  # spelt so there
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}


def from_open_clip(name: str, pretrained: str, folder: Path) -> Path:
    """Writes open_clip's model `name` with the weights `pretrained` to the folder; see `write`."""
    import open_clip

    if (name, pretrained) not in open_clip.list_pretrained():
        known = [tag for model, tag in open_clip.list_pretrained() if model == name]
        raise ValueError(f"open_clip has no weights {pretrained!r} of {name!r}; it has {known} (config/backbones.yaml)")
    quick = bool((open_clip.get_pretrained_cfg(name, pretrained) or {}).get("quick_gelu"))
    if "quickgelu" in name and not quick:
        raise ValueError(f"open_clip's weights {pretrained!r} of {name!r} use plain GELU: drop -quickgelu")
    model = open_clip.create_model(name, pretrained=pretrained, force_quick_gelu=quick)  # it only warns of a mismatch
    return write(model, name, folder)


def write(model: Any, name: str, folder: Path) -> Path:
    """Writes both towers, tokenizer and preprocessing of an open_clip model; ValueError if they are no plain ViTs."""
    towers = {folder: vision_tower(model, name), folder / "text": text_tower(model, name)}
    for place, (config, tensors) in towers.items():
        place.mkdir(parents=True, exist_ok=True)
        save_tensors(place / "model.safetensors", {n: t.contiguous() for n, t in tensors.items()}, {"format": "pt"})
        (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _tokenizer(name).save_pretrained(folder / "text")
    facts = {"name": name, "preprocess": model.visual.preprocess_cfg}
    (folder / OPEN_CLIP).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder


Tower = tuple[dict[str, Any], dict[str, Tensor]]  # config.json and weights


def vision_tower(model: Any, name: str) -> Tower:
    """The image tower of open_clip's model `name`, as transformers has it; ValueError if it is no plain ViT."""
    state = {key.removeprefix("visual."): t for key, t in model.state_dict().items() if key.startswith("visual.")}
    if not isinstance(getattr(model.visual, "transformer", None), nn.Module) or not {*VISION, "proj"} <= set(state):
        raise ValueError(f"open_clip's {name} is no pair of plain ViTs; expected ViT-B-32, ViT-B-16, ViT-L-14 or such")
    config = _config(model.visual.transformer, state["proj"].shape[1])
    config |= {"image_size": model.visual.image_size[0], "patch_size": state["conv1.weight"].shape[-1]}
    tensors = _tensors(state, "vision_model", VISION) | {"visual_projection.weight": state["proj"].T}
    return {"model_type": "clip_vision_model", **config}, tensors


def text_tower(model: Any, name: str) -> Tower:
    """Its text tower; ValueError if it is no plain transformer."""
    state = model.state_dict()
    if not {*TEXT, "text_projection"} <= set(state):
        raise ValueError(f"open_clip's {name} is no pair of plain ViTs; expected ViT-B-32, ViT-B-16, ViT-L-14 or such")
    config = _config(model.transformer, state["text_projection"].shape[1])
    config |= {"vocab_size": model.vocab_size, "max_position_embeddings": model.context_length, "eos_token_id": 49407}
    tensors = _tensors(state, "text_model", TEXT) | {"text_projection.weight": state["text_projection"].T}
    return {"model_type": "clip_text_model", **config}, tensors


def _config(transformer: Any, projection: int) -> dict[str, Any]:
    block = transformer.resblocks[0]
    return {
        "hidden_size": block.attn.embed_dim,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_attention_heads": block.attn.num_heads,
        "num_hidden_layers": len(transformer.resblocks),
        "projection_dim": projection,
        "hidden_act": "gelu" if isinstance(block.mlp.gelu, nn.GELU) else "quick_gelu",
        "layer_norm_eps": block.ln_1.eps,
    }


def _tensors(state: Mapping[str, Tensor], tower: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    tensors = {f"{tower}.{new}": state[old] for old, new in names.items()}
    return tensors | {f"{tower}.encoder.layers.{name}": value for name, value in _blocks(state)}


def _blocks(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The parameters of the residual blocks, the fused projection cut in three."""
    start = "transformer.resblocks."
    for key, value in state.items():
        if not key.startswith(start):
            continue
        number, _, name = key.removeprefix(start).partition(".")
        if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
            for part, rows in zip("qkv", torch.chunk(value, 3), strict=True):
                yield f"{number}.self_attn.{part}_proj.{name.rpartition('_')[2]}", rows
        else:
            layer, _, kind = name.rpartition(".")
            yield f"{number}.{BLOCK[layer]}.{kind}", value


def _tokenizer(name: str) -> Any:
    """open_clip's own byte-pair encoding in transformers' tokenizer."""
    import open_clip
    from transformers import CLIPTokenizer

    own = open_clip.get_tokenizer(name)
    if not isinstance(own, open_clip.SimpleTokenizer):
        raise ValueError(f"open_clip's {name} has a tokenizer of its own, {type(own).__name__}; expected CLIP's")
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(token, token): number for token, number in own.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=cast(Any, list(own.bpe_ranks)), model_max_length=own.context_length)
