"""The image tower as a backbone whose pictures are prepared already: bytes, which a batch stacks."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from fusion.backbones.pixels import Pixels
from fusion.backbones.vision import Clip
from on_gpu.setup import Setup

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Prepared(Pixels):
    """Takes pictures that need neither decoding nor resizing."""

    def __init__(self) -> None:
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def __call__(self, pictures: Sequence[Tensor]) -> Tensor:
        """(B, 3, H, W) of B pictures (3, H, W), all uint8."""
        return torch.stack(list(pictures))


class Tower(Clip):
    """A CLIP that is on no disk."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.pixels, self.logit_scale = module, Prepared(), 100.0


def pictures(setup: Setup, count: int) -> list[Tensor]:
    """Random pictures on the host: (3, H, W) uint8 each."""
    side = setup.sizes.vision["image_size"]
    rng = Generator().manual_seed(3)
    return list(torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=rng))
