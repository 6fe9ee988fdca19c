"""Adam on a function whose gradient is a formula, for several matrices at once.

Kingma and Ba, ICLR 2015, arXiv 1412.6980, algorithm 1, with its β; to the bit the steps of torch.optim.Adam, which has
one ε for all that it moves.
"""

from collections.abc import Callable

import torch
from torch import Tensor

BETA_1, BETA_2 = 0.9, 0.999


def descend(
    start: Tensor, gradient: Callable[[Tensor], Tensor], steps: int, lr: float, epsilon: Tensor | float = 1e-8
) -> Tensor:
    """Where `steps` of Adam end, (..., m, n); written over `start`. epsilon: one number, or (..., 1, 1)."""
    mean, square = torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        slope = gradient(start)
        mean.lerp_(slope, 1 - BETA_1)
        square.mul_(BETA_2).addcmul_(slope, slope, value=1 - BETA_2)
        spread = square.sqrt().div_((1 - BETA_2**step) ** 0.5).add_(epsilon)
        start.addcdiv_(mean, spread, value=-lr / (1 - BETA_1**step))
    return start
