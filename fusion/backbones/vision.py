"""Image towers of transformers: DINOv2, and CLIP with a text tower beside it for zero-shot heads."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection, Dinov2Model

from fusion.artifacts import read_json
from fusion.backbones.loading import load
from fusion.backbones.pixels import OPEN_CLIP, Pixels
from fusion.checkpoint import save_tensors
from fusion.data.images import Picture, Prepared

Batch = dict[str, Tensor]
TEXT = "text"  # the subfolder of CLIP's text tower and its tokenizer
AT_ONCE = 256  # prompts embedded together


class VisionTower(ABC):
    """A transformers image model with cosine similarity to class embeddings; `module` is the network.

    logit_scale: factor of the cosine similarities; image_size: side of a picture in pixels, if not the model's own.
    """

    network: Any  # the transformers class

    def __init__(self, folder: str | Path, *, logit_scale: float, image_size: int | None = None) -> None:
        self.folder = Path(folder)
        self.module = load(self.network, folder, self.overrides())
        self.pixels, self.logit_scale = Pixels(folder, image_size), logit_scale
        self.module.eval()

    def overrides(self) -> dict[str, Any]:
        """What the folder's configuration says elsewhere than where the network looks."""
        return {}

    def save(self, folder: str | Path) -> None:
        """Writes the network in transformers format, and how it wants its pictures.

        The weights have the names of the module's parameters; `save_pretrained` may use those of an older version.
        """
        self.module.config.save_pretrained(folder)
        state = {name: tensor.contiguous() for name, tensor in self.module.state_dict().items()}
        save_tensors(Path(folder) / "model.safetensors", state, {"format": "pt"})
        for name in ("preprocessor_config.json", "processor_config.json", OPEN_CLIP):
            if (self.folder / name).is_file():
                (Path(folder) / name).write_bytes((self.folder / name).read_bytes())

    def collate(self, inputs: Sequence[Picture | Prepared]) -> Batch:
        """The prepared pictures as bytes: (B, 3, H, W)."""
        return {"pixels": self.pixels(inputs)}

    def sizes(self, inputs: Sequence[Any]) -> list[int]:
        """All pictures are the same work."""
        return [0] * len(inputs)

    def token_mask(self, batch: Batch) -> Tensor:
        """All tokens count, patches and the class token: (B, tokens) bool."""
        count, _, height, width = batch["pixels"].shape
        patch = self.module.config.patch_size
        return torch.ones(
            count, (height // patch) * (width // patch) + 1, dtype=torch.bool, device=batch["pixels"].device
        )

    def features(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Normalized embeddings (B, d)."""
        pixels = self.pixels.normalized(batch["pixels"])
        states = functional_call(self.module, dict(params), kwargs={"pixel_values": pixels})
        return normalize(self.pooled(states).float(), dim=-1)

    def logits(self, params: Mapping[str, Tensor], batch: Batch, head: Tensor) -> Tensor:
        """(B, C) for class embeddings head (C, d); `params` replace the module's own where named."""
        return self.scores(self.features(params, batch), head)

    def scores(self, features: Tensor, head: Tensor) -> Tensor:
        """The logits (B, C) of features (B, d) for class embeddings head (C, d)."""
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would tie one class in ten with another
            return self.logit_scale * features @ head.T

    @abstractmethod
    def pooled(self, states: Any) -> Tensor:
        """The embedding (B, d) in what the network returns."""


class DinoV2(VisionTower):
    """DINOv2 (Oquab et al., 2023, arXiv 2304.07193): the class token after the last layer norm."""

    network = Dinov2Model

    def pooled(self, states: Any) -> Tensor:
        return states.last_hidden_state[:, 0]


class Clip(VisionTower):
    """CLIP (Radford et al., 2021, arXiv 2103.00020): the projected image embedding.

    The folder is that of a whole model, or of an image tower with the text tower in its subfolder `text`.
    """

    network = CLIPVisionModelWithProjection

    def __init__(self, folder: str | Path, *, logit_scale: float) -> None:
        super().__init__(folder, logit_scale=logit_scale)

    def pooled(self, states: Any) -> Tensor:
        return states.image_embeds

    def overrides(self) -> dict[str, Any]:
        config = read_json(self.folder / "config.json")  # of a whole model: the width is not in its towers' parts
        return {"projection_dim": config["projection_dim"]} if "projection_dim" in config else {}

    def save(self, folder: str | Path) -> None:
        super().save(folder)
        model, tokenizer = self._text()
        model.save_pretrained(Path(folder) / TEXT)
        tokenizer.save_pretrained(Path(folder) / TEXT)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Normalized embeddings (n, d) of texts by the text tower, which no mode trains."""
        model, tokenizer = self._text()
        model = model.to(self.module.device).eval()
        found = []
        for start in range(0, len(texts), AT_ONCE):
            part = list(texts[start : start + AT_ONCE])
            tokens = tokenizer(part, padding=True, truncation=True, max_length=77, return_tensors="pt")
            found.append(normalize(model(**tokens.to(model.device)).text_embeds.float(), dim=-1))
        return torch.cat(found)

    def _text(self) -> tuple[Any, Any]:
        own = self.folder / TEXT
        folder = own if own.is_dir() else self.folder
        tower = load(CLIPTextModelWithProjection, folder, self.overrides())
        return tower, AutoTokenizer.from_pretrained(folder, local_files_only=True)
