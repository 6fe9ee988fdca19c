"""What all sections share: the device, the sizes, random models of CLIP ViT-B/32, and what was found so far."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from machine import bound
from torch import Generator, Tensor, nn

from fusion.device import generator
from fusion.vectors import TaskVectors

Figures = dict[str, Any]  # by name: values beside their goals, as `bound` makes them
Rows = Iterator[tuple[str, Callable[[], Figures]]]  # the name of what is measured, and how


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `vision` is what transformers' CLIPVisionConfig is told."""

    tasks: int
    unlabelled: int  # pictures of a task in a batch of an adaptive method
    batch: int  # pictures of a step of fine-tuning, and of evaluation
    pictures: int  # that are evaluated
    steps: int  # of an adaptive method, timed at once
    repeats: int
    vision: dict[str, Any]


VIT_B_32 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TRUE = Sizes(8, 16, 128, 1536, 10, 5, {**VIT_B_32, "image_size": 224, "patch_size": 32, "projection_dim": 512})
TINY = Sizes(3, 2, 4, 12, 1, 1, {**SMALL, "image_size": 64, "patch_size": 32, "projection_dim": 24})


@dataclass
class Setup:
    """The device, the sizes, when the time is over (by `time.monotonic`), and the figures of every row by its name."""

    place: torch.device
    is_tiny: bool
    deadline: float
    found: dict[str, Figures] = field(default_factory=dict)

    @property
    def sizes(self) -> Sizes:
        """The true ones, or tiny ones, at which figures mean nothing."""
        return TINY if self.is_tiny else TRUE

    @property
    def left(self) -> float:
        """Seconds until the time is over."""
        return self.deadline - time.monotonic()

    def goal(self, value: float, *, at_most: float | None = None, at_least: float | None = None) -> dict[str, Any]:
        """A figure beside its goal, which tiny sizes have none of."""
        return bound(value) if self.is_tiny else bound(value, at_most=at_most, at_least=at_least)

    def figure(self, row: str, name: str) -> float:
        """A figure of an earlier row. ValueError where it was not measured."""
        if name not in self.found.get(row, {}):
            raise ValueError(f"needs {name!r} of {row!r}, which was not measured")
        return self.found[row][name]["value"]

    def tower(self) -> nn.Module:
        """The image tower, anew, with random weights: always the same."""
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        torch.manual_seed(0)
        network: nn.Module = CLIPVisionModelWithProjection(CLIPVisionConfig(**self.sizes.vision))
        return network.to(self.place).eval()

    @cached_property
    def taus(self) -> TaskVectors:
        """T models near the image tower's weights, all on the device."""
        start = {name: parameter.detach() for name, parameter in self.tower().named_parameters()}
        return TaskVectors(start, [nearby(start, task) for task in range(self.sizes.tasks)])

    def pixels(self, *shape: int) -> Tensor:
        """Random pictures as the tower reads them: (*shape, 3, H, W)."""
        side = self.sizes.vision["image_size"]
        return torch.randn(*shape, 3, side, side, generator=Generator().manual_seed(1)).to(self.place)

    def head(self) -> Tensor:
        """Random class embeddings (10, d) of length 1."""
        rows = torch.randn(10, self.sizes.vision["projection_dim"], generator=Generator().manual_seed(2))
        return nn.functional.normalize(rows, dim=-1).to(self.place)


def nearby(start: dict[str, Tensor], task: int) -> dict[str, Tensor]:
    """A model at a random distance from θ0 that is usual of fine-tuned ones."""
    found = {}
    for number, (name, tensor) in enumerate(start.items()):
        rng = generator(tensor.device, 1000 * (task + 1) + number)
        found[name] = torch.randn(tensor.shape, device=tensor.device, generator=rng).mul_(1e-3).add_(tensor)
    return found
