"""The Concrete (relaxed Bernoulli) mask and its gradient, in runs that fit in a core's cache.

With logits x, u ~ U(0, 1) and temperature β:  m = σ((x + log u − log(1 − u)) / β),  m̂ = m / mean(m) (the mean over
one tensor), and so for a loss H:  ∂H/∂x = (1 − m) / β ⊙ m̂ ⊙ (∂H/∂m̂ − mean(m̂ ⊙ ∂H/∂m̂)).
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Generator, Tensor

from fusion.device import compiles, generator
from fusion.methods._draws import new_seed
from fusion.parallel import workers
from fusion.vectors import device_of

RUN = 1 << 17  # coordinates


def sample(logits: Tensor, temperature: float, rng: Generator) -> Tensor:
    """One draw m of the mask, differentiable in x: (*shape) -> (*shape)."""
    seed, noise = new_seed(rng), logits.new_empty(logits.shape)
    for start, run in _runs(noise):
        run.copy_(logistic(run, seed, start))
    return ((logits + noise) / temperature).sigmoid()


def rescale(mask: Tensor) -> Tensor:
    """m̂ = m / mean(m); zeros where the whole mask is zero."""
    return mask / mask.mean().clamp(min=torch.finfo(mask.dtype).tiny)


def draw(
    logits: Mapping[str, Tensor], masks: Mapping[str, Tensor], temperature: float, rng: Generator
) -> dict[str, Tensor]:
    """mean(m), (), of every layer of one draw; its m̂, what `rescale(sample(x))` would give, is written over `masks`."""

    def fill(job: tuple[Tensor, int, int, Tensor]) -> Tensor:
        run, seed, start, x = job
        return torch.add(logistic(run, seed, start), x, out=run).div_(temperature).sigmoid_().sum()

    means = {}
    with workers(device_of(logits)) as each:
        for name, x in logits.items():
            seed, flat, mask = new_seed(rng), x.detach().reshape(-1), masks[name].detach()
            totals = each(fill, [(run, seed, start, flat[start : start + RUN]) for start, run in _runs(mask)])
            mean = sum(totals, start=flat.new_zeros(())) / max(1, len(flat))
            means[name] = mean.clamp(min=torch.finfo(mean.dtype).tiny)
            mask.div_(means[name])
    return means


@torch.no_grad()
def to_logits(slope: Tensor, mask: Tensor, mean: Tensor, temperature: float) -> Tensor:
    """∂H/∂x of ∂H/∂m̂ = slope, all (*shape); written over `mask`, m̂."""
    away = slope - torch.dot(slope.reshape(-1), mask.reshape(-1)) / max(1, mask.numel())
    away.mul_(mask)
    return mask.mul_(-mean / temperature).add_(1 / temperature).mul_(away)


def logistic(like: Tensor, seed: int, start: int) -> Tensor:
    """log u − log(1 − u) for a run (c,) of coordinates from `start` of a tensor, (c,) float32 on its device.

    u = (k + ½) / 2²³ for 23 random bits k, so it is never 0 or 1. On the CPU numpy draws and takes logarithms three to
    four times as fast as torch.
    """
    if not compiles(like.device):
        bits = torch.empty(like.shape, device=like.device).random_(0, 1 << 23, generator=generator(like.device, seed))
        return bits.add_(0.5).div_(2.0**23 - bits).log_()
    words = np.random.SFC64([seed, start]).random_raw(-(-len(like) // 2))
    odds = (words.view(np.int32)[: len(like)] >> 9).astype(np.float32)  # −2²² … 2²² − 1
    odds += 2.0**22 + 0.5  # u · 2²³
    odds /= 2.0**23 - odds
    return torch.from_numpy(np.log(odds, out=odds))


def _runs(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Pieces of a tensor and where they start; on a GPU, where it is drawn at once, the whole."""
    flat = tensor.view(-1)
    size = RUN if compiles(tensor.device) else max(1, len(flat))
    return ((start, flat[start : start + size]) for start in range(0, len(flat), size))
