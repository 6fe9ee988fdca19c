"""What a labelled method takes beside task vectors: statistics of models, or functions of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fusion.device import autocast, on_device
from fusion.vectors import NotApplicable

if TYPE_CHECKING:
    from fusion.backbones import Backbone
    from fusion.spaces import Space
    from fusion.suites import Scored, Suite

# Per task, by the name of a tensor: the diagonal of the Fisher information, of the tensor's shape, ≥ 0.
Fishers = Sequence[Mapping[str, Tensor]]
# Per task, by the name of a linear layer's weight (out, in): the mean of x xᵀ over its inputs x, (in, in).
Grams = Sequence[Mapping[str, Tensor]]
# By the name of such a weight: those of all tasks, where the layers before it are merged already, (T, in, in).
MergedGrams = Mapping[str, Tensor]


class Loss(Protocol):
    """Parameters by name -> mean cross-entropy in nats on few labelled examples of all tasks, or of those given."""

    def __call__(self, params: Mapping[str, Tensor], tasks: Sequence[int] | None = None) -> Tensor: ...


class Features(Protocol):
    """(task t, parameters, names) -> the Gram matrix (in, in) of the inputs that a model with these parameters gives
    its linear layers on examples of task t, by the name of the layer's weight, in the order in which they run.

    Names that are no weight of a linear layer are left out. The parameters take the place of the model's own.
    """

    def __call__(self, task: int, params: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]: ...


class TotalLoss:
    """The mean over tasks of the mean cross-entropy on the same examples at every call; differentiable.

    to_weights: parameters of the merged space -> weights of the model; logits: (weights, head, batch) -> (B, C).
    """

    def __init__(
        self,
        to_weights: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
        logits: Callable[[Mapping[str, Tensor], Tensor, Any], Tensor],
        scored: Sequence[Scored],
    ) -> None:
        self.to_weights, self.logits, self.scored = to_weights, logits, scored

    def __call__(self, params: Mapping[str, Tensor], tasks: Sequence[int] | None = None) -> Tensor:
        weights = self.to_weights(params)
        chosen = range(len(self.scored)) if tasks is None else tasks
        return torch.stack([self._loss(weights, self.scored[t]) for t in chosen]).mean()

    def _loss(self, weights: Mapping[str, Tensor], part: Scored) -> Tensor:
        total = torch.zeros((), device=part.head.device)
        for indices, batch in part.inputs.batches:
            logits = self.logits(weights, part.head, batch)
            total = total + cross_entropy(logits, part.labels[indices].to(logits.device), reduction="sum")
        return total / part.inputs.count


def total_loss(backbone: Backbone, suite: Suite, space: Space, *, examples: int, batch_size: int) -> TotalLoss:
    """The loss of merged parameters on the first `examples` training examples of every task of the suite."""

    def logits(weights: Mapping[str, Tensor], head: Tensor, batch: Any) -> Tensor:
        with autocast():
            return backbone.logits(weights, batch, head).float()

    scored = list(suite.scored(backbone, "train", examples, batch_size))
    return TotalLoss(lambda params: on_device(space.to_weights(params)), logits, scored)


def require_weights(backbone: Backbone, space: Space) -> None:
    """NotApplicable where the space's coordinates are not the network's own parameters: they have no inputs."""
    own = dict(backbone.module.named_parameters())
    strange = [name for name in space.vectors.pretrained if name not in own]
    if strange:
        raise NotApplicable(
            f"inputs are those of weights: got {strange[0]!r}, expected parameters of the model (space: weight)"
        )


class _AllSeen(Exception):
    """Every layer that was asked for has run; the rest of the network need not."""


@torch.no_grad()
def grams(
    backbone: Backbone,
    weights: Mapping[str, Tensor],
    batches: Sequence[Any],
    names: Sequence[str],
    *,
    until_seen: bool = False,
) -> dict[str, Tensor]:
    """The mean of x xᵀ over tokens that are not padding, (in, in), of every linear layer whose weight is named.

    In the order in which the layers run. until_seen: stop the network once each has run; a layer that runs several
    times is then read at the first alone.
    """
    layers = {f"{name}.weight": m for name, m in backbone.module.named_modules() if isinstance(m, nn.Linear)}
    wanted = [name for name in names if name in layers]
    sums: dict[str, Tensor] = {}
    counts, left = dict.fromkeys(wanted, 0), set()
    kept = torch.empty(0)

    def read(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = inputs[0].flatten(0, -2)  # (tokens, in)
        rows = rows[kept] if inputs[0].dim() == 3 else rows
        gram = rows.T @ rows
        sums[name] = sums[name] + gram if name in sums else gram
        counts[name] += len(rows)
        left.discard(name)
        if until_seen and not left:
            raise _AllSeen

    hooks = [layers[name].register_forward_pre_hook(partial(read, name)) for name in wanted]
    try:
        for batch in batches if wanted else ():
            # which tokens there are, looked at once a batch: a GPU is waited for where a mask chooses
            kept, left = backbone.token_mask(batch).flatten().nonzero()[:, 0], set(wanted)
            try:
                backbone.features(weights, batch)
            except _AllSeen:
                continue
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / max(1, counts[name]) for name, total in sums.items()}
