"""The losses of a run of training, which stay where they were computed until somebody looks."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

EVERY = 20  # steps after which somebody does: a GPU is waited for then, and not after every step


class Losses:
    """The loss of every step so far, in the order of the steps; `known` are those of the steps before these.

    lr: the learning rate of the recipe, for messages.
    """

    def __init__(self, known: list[float], lr: float) -> None:
        self._known, self._lr = list(known), lr
        self._unseen: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Takes the loss () of the next step. ValueError as `values`, which looks at every EVERY-th."""
        self._unseen.append(loss.detach())
        if len(self._unseen) == EVERY:
            self.values()

    def values(self) -> list[float]:
        """All of them; the device is waited for once. ValueError naming the first step whose loss is not finite."""
        if self._unseen:
            seen, self._unseen = torch.stack(self._unseen).tolist(), []
            for step, loss in enumerate(seen, len(self._known) + 1):
                if not math.isfinite(loss):
                    raise ValueError(
                        f"the loss is {loss} at step {step}; expected a smaller finetune.lr than {self._lr}"
                    )
            self._known += seen
        return self._known


def require_finite(parameters: Iterable[Tensor], step: int, lr: float) -> None:
    """ValueError where a parameter is not finite after so many steps; the device is waited for once."""
    if not torch.stack([parameter.detach().isfinite().all() for parameter in parameters]).all():
        raise ValueError(f"a parameter is not finite after step {step}; expected a smaller finetune.lr than {lr}")
