"""Pictures as a model's own library prepares them, all but the last step: bytes, which `normalized` makes numbers."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from transformers import AutoImageProcessor

from fusion.artifacts import digest
from fusion.data.images import Picture, Prepared
from fusion.device import onto

OPEN_CLIP = "open_clip.json"  # in a folder whose pictures open_clip prepares: its settings


class Pixels:
    """Prepares pictures for the model in `folder`; image_size replaces the side that its settings say, in pixels.

    Bytes are a quarter of the memory and of the way to a GPU. `transform` tells one way of preparing from others.
    """

    def __init__(self, folder: str | Path, image_size: int | None = None) -> None:
        own = Path(folder) / OPEN_CLIP
        found = _open_clip(own, image_size) if own.is_file() else _transformers(folder, image_size)
        self._prepare, mean, std, settings = found
        self.transform = digest(settings)
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def __call__(self, pictures: Sequence[Picture | Prepared]) -> Tensor:
        """(B, 3, H, W) uint8, decoded and resized in parallel where they are not yet prepared.

        ValueError naming a picture that is none.
        """
        if not any(isinstance(picture, Picture) for picture in pictures):
            return torch.from_numpy(np.stack(cast(Sequence[Prepared], pictures)))
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # those of an earlier batch do not survive a fork
            return torch.from_numpy(np.stack(list(threads.map(self._bytes, pictures))))

    def _bytes(self, picture: Picture | Prepared) -> Prepared:
        return self._prepare(picture.rgb()).numpy() if isinstance(picture, Picture) else picture

    def normalized(self, pixels: Tensor) -> Tensor:
        """What the model reads, where the pixels are: (B, 3, H, W) float32."""
        mean, std = (onto(pixels.device, values) for values in (self._mean, self._std))
        return (pixels / 255 - mean) / std


Found = tuple[Callable[[Image], Tensor], Sequence[float], Sequence[float], Any]  # transform, mean, std, its settings


def _transformers(folder: str | Path, image_size: int | None) -> Found:
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    if image_size is not None:
        processor.size = {"shortest_edge": image_size}
        processor.crop_size = {"height": image_size, "width": image_size}

    def prepare(image: Image) -> Tensor:
        return processor(images=[image], return_tensors="pt", do_rescale=False, do_normalize=False)["pixel_values"][0]

    return prepare, processor.image_mean, processor.image_std, processor.to_dict()


def _open_clip(settings: Path, image_size: int | None) -> Found:
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose, Normalize, PILToTensor, ToTensor

    own: Mapping[str, Any] = json.loads(settings.read_text(encoding="utf-8"))["preprocess"]
    config = PreprocessCfg(**{**own, **({"size": image_size} if image_size else {})})
    steps = cast(Compose, image_transform_v2(config, is_train=False)).transforms
    as_bytes = [PILToTensor() if isinstance(step, ToTensor) else step for step in steps]
    to_bytes = Compose([step for step in as_bytes if not isinstance(step, Normalize)])
    return to_bytes, config.mean, config.std, asdict(config)
