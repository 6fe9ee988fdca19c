"""A network small enough for finite differences, its fine-tuned models, and the entropy on fixed batches."""

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat

import torch
from tiny_vectors import Model
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import scaled_dot_product_attention

from fusion.objectives import TotalEntropy
from fusion.vectors import TaskVectors

TASKS = 2


class Attention(nn.Module):
    """One head over three tokens of two features each, then a classifier: (B, 6) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(2, 6), nn.Linear(2, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        parts = self.qkv(inputs.reshape(len(inputs), 1, 3, 2)).chunk(3, dim=-1)  # (B, 1, 3, 2) each
        return self.out(scaled_dot_product_attention(*parts).mean((1, 2)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "two layers": lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)),
    "attention": Attention,
}


def tiny_network(kind: str = "two layers", dtype: torch.dtype = torch.float64) -> tuple[TaskVectors, TotalEntropy]:
    """Two models around a random θ0, and an objective that sees the same batch at every call."""
    rng = torch.Generator().manual_seed(5)
    network = NETWORKS[kind]().to(dtype)

    def draw(scale: float, around: Mapping[str, Tensor] | None = None) -> Model:
        size = {
            name: torch.randn(p.shape, generator=rng, dtype=dtype) * scale for name, p in network.named_parameters()
        }
        return size if around is None else {name: around[name] + part for name, part in size.items()}

    pretrained = draw(0.7)
    batch = torch.cat([torch.randn(4, 6, generator=rng, dtype=dtype) for _ in range(TASKS)])

    def logits(weights: Mapping[str, Tensor], batch: Tensor) -> Sequence[Tensor]:
        return functional_call(network, dict(weights), (batch,)).chunk(TASKS)

    taus = TaskVectors(pretrained, [draw(0.7, pretrained) for _ in range(TASKS)])
    return taus, TotalEntropy(dict, logits, repeat(batch))
