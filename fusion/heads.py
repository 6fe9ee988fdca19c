"""Frozen class heads, shared by all modes and methods: embeddings of prompts, or prototypes of pre-trained features."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from fusion.backbones import Backbone
from fusion.data.tasks import TaskData
from fusion.device import autocast

PROTOTYPE_EXAMPLES = 2000  # of the training split
BATCH = 64


def class_embeddings(backbone: Any, data: TaskData) -> Tensor:
    """(C, d), normalized: of the task's prompts where the backbone embeds texts, else prototypes."""
    if hasattr(backbone, "embed_texts"):
        return zero_shot(backbone, data.info["words"], data.info["prompts"])
    return prototypes(backbone, data)


def zero_shot(backbone: Any, words: list[str], prompts: list[str]) -> Tensor:
    """The normalized mean of the normalized embeddings of every prompt about a class (Radford et al., 2021)."""
    texts = [prompt.format(one) for one in words for prompt in prompts]
    embeddings = backbone.embed_texts(texts).reshape(len(words), len(prompts), -1)
    return normalize(embeddings.mean(1), dim=-1)


@torch.inference_mode()
def prototypes(backbone: Backbone, data: TaskData) -> Tensor:
    """The normalized mean feature of the first training examples of every class."""
    inputs, labels = data.inputs("train", PROTOTYPE_EXAMPLES), data.labels("train", PROTOTYPE_EXAMPLES)
    features = []
    with autocast():
        for start in range(0, len(inputs), BATCH):
            features.append(backbone.features({}, backbone.collate(inputs[start : start + BATCH])).float().cpu())
    member = one_hot(labels, len(data.info["classes"])).float()
    if missing := [name for name, n in zip(data.info["classes"], member.sum(0).tolist(), strict=True) if not n]:
        raise ValueError(
            f"task {data.info['name']}: classes {missing} are not among the first {len(inputs)} training examples, "
            "which prototypes are made of; give the task more"
        )
    return normalize(member.T @ torch.cat(features), dim=-1)
