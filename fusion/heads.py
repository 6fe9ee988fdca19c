"""Frozen class heads, shared by all modes and methods: embeddings of prompts, or prototypes of pre-trained features."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from fusion.ahead import ahead
from fusion.backbones import Backbone
from fusion.data.tasks import TaskData
from fusion.device import autocast

PROTOTYPE_EXAMPLES, OF_A_CLASS = 2000, 5  # of the training split: so many in all, but at least so many of a class
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
    inputs, labels, classes = data.inputs("train"), data.labels("train"), data.info["classes"]
    member = one_hot(labels, len(classes))
    if missing := [name for name, n in zip(classes, member.sum(0).tolist(), strict=True) if not n]:
        raise ValueError(f"task {data.info['name']}: no training example of classes {missing} to make a prototype of")
    most = max(OF_A_CLASS, PROTOTYPE_EXAMPLES // len(classes))
    chosen = (member.cumsum(0).gather(1, labels[:, None])[:, 0] <= most).nonzero()[:, 0].tolist()
    features = []
    with autocast():
        parts = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
        for batch in ahead(lambda part: backbone.collate([inputs[i] for i in part]), parts):
            features.append(backbone.features({}, batch).float())
    return normalize(member[chosen].float().T @ torch.cat(features).cpu(), dim=-1)
