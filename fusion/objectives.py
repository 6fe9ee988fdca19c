"""What adaptive methods minimise, as functions of merged parameters. Nothing here sees a label."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Objective(Protocol):
    """Parameters by name -> a scalar, on the next unlabelled batches; differentiable."""

    def __call__(self, params: Mapping[str, Tensor]) -> Tensor: ...


def entropy(logits: Tensor) -> Tensor:
    """H(softmax z) of each row in nats: (B, C) -> (B,)."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


class TotalEntropy:
    """Σ_t mean over a batch of H(softmax f_t(x; θ)), the objective of AdaMerging and of Concrete.

    to_weights: parameters of the merged space -> weights of the model; logits: (weights, task, batch) -> (B, C)
    for tasks 0…T−1; streams: one endless iterator of unlabelled batches a task. `calls` counts evaluations.
    """

    def __init__(
        self,
        to_weights: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
        logits: Callable[[Mapping[str, Tensor], int, Any], Tensor],
        streams: Sequence[Iterator[Any]],
    ) -> None:
        self.to_weights, self.logits, self.streams = to_weights, logits, streams
        self.calls = 0

    def __call__(self, params: Mapping[str, Tensor]) -> Tensor:
        self.calls += 1
        weights = self.to_weights(params)
        each = (entropy(self.logits(weights, t, next(batches))).mean() for t, batches in enumerate(self.streams))
        return torch.stack(list(each)).sum()
