"""Sentence encoders: a transformers text model, mean pooling, and cosine similarity to class embeddings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModel, AutoTokenizer

from fusion.backbones.loading import load
from fusion.device import on_device

Batch = dict[str, Tensor]


class SentenceEncoder:
    """A text encoder read from a folder in transformers format; `module` is the network.

    max_length: tokens a text is cut to; logit_scale: factor of the cosine similarities; overrides: values that
    replace those of the model's config.json.
    """

    def __init__(
        self, folder: str | Path, *, max_length: int, logit_scale: float, overrides: Mapping[str, Any] | None = None
    ) -> None:
        # of what a checkpoint may lack, only the pooler is never used
        self.module = load(AutoModel, folder, overrides, unused=["pooler.*"])
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.max_length, self.logit_scale = max_length, logit_scale
        self.module.eval()

    def save(self, folder: str | Path) -> None:
        """Writes the network and its tokenizer in transformers format."""
        self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def collate(self, inputs: Sequence[str]) -> Batch:
        """Token ids and attention mask (B, length), padded to the longest of these texts."""
        tokens = self.tokenizer(
            list(inputs), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    def sizes(self, inputs: Sequence[str]) -> list[int]:
        """A cheap measure of each input's length, to batch inputs of similar cost."""
        return [min(len(text), 6 * self.max_length) for text in inputs]

    def token_mask(self, batch: Batch) -> Tensor:
        """Which tokens are not padding: (B, length) bool."""
        return batch["attention_mask"].bool()

    def features(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Normalized embeddings (B, d): the mean over the tokens that are not padding."""
        inputs = batch | {"attention_mask": self._attended(batch["attention_mask"])}
        states = functional_call(self.module, dict(params), kwargs=inputs).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    def _attended(self, mask: Tensor) -> Tensor:
        """The mask as transformers takes it: (B, length), or (B, 1, 1, length) where it would look into the former.

        With "sdpa" it looks whether anything is padded, for which a GPU is waited for.
        """
        looks = mask.device.type != "cpu" and self.module.config._attn_implementation == "sdpa"
        return mask[:, None, None].bool() if looks else mask

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Normalized embeddings (n, d) of texts: those of the inputs themselves."""
        return self.features({}, on_device(self.collate(texts)))

    def logits(self, params: Mapping[str, Tensor], batch: Batch, head: Tensor) -> Tensor:
        """(B, C) for class embeddings head (C, d); `params` replace the module's own where named."""
        return self.scores(self.features(params, batch), head)

    def scores(self, features: Tensor, head: Tensor) -> Tensor:
        """The logits (B, C) of features (B, d) for class embeddings head (C, d)."""
        return self.logit_scale * features @ head.T
