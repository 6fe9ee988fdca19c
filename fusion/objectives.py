"""What adaptive methods minimise, as functions of merged parameters. Nothing here sees a label."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Objective(Protocol):
    """Parameters by name -> a scalar, on the next unlabelled batch; differentiable."""

    def __call__(self, params: Mapping[str, Tensor]) -> Tensor: ...


def entropy(logits: Tensor) -> Tensor:
    """H(softmax z) of each row in nats: (B, C) -> (B,)."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


class TotalEntropy:
    """Σ_t mean over a batch of H(softmax f_t(x; θ)), the objective of AdaMerging and of Concrete.

    to_weights: parameters of the merged space -> weights of the model; logits: (weights, batch) -> (B, C_t) of every
    task; batches: an endless iterator of batches with unlabelled inputs of all tasks.
    """

    def __init__(
        self,
        to_weights: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
        logits: Callable[[Mapping[str, Tensor], Any], Sequence[Tensor]],
        batches: Iterator[Any],
    ) -> None:
        self.to_weights, self.logits, self.batches = to_weights, logits, batches

    def __call__(self, params: Mapping[str, Tensor]) -> Tensor:
        found = self.logits(self.to_weights(params), next(self.batches))
        return torch.stack([entropy(logits).mean() for logits in found]).sum()
