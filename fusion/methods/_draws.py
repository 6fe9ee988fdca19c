"""Random numbers for the coordinates of task vectors, the same however and in which order these are read."""

import zlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator, Tensor

from fusion.device import compiles, generator
from fusion.vectors import Layer

LEVELS = 1 << 16


def new_seed(rng: Generator) -> int:
    """The one number drawn from `rng` for a whole merge."""
    return int(torch.randint(1 << 62, (), generator=rng))


def draw(seed: int, layer: Layer) -> Iterator[Tensor]:
    """Uniform whole numbers from −2¹⁵ to 2¹⁵ − 1, independent for every coordinate, of each task: (*shape) int16.

    The smallest n of these LEVELS, those below n − LEVELS / 2, have the probability n / LEVELS.

    A task's stream is seeded with the layer's name, the run's place and the content of τ_t, so that neither the order
    of layers nor that of tasks matters; two tasks with the same τ_t get the same draws. Every kind of device has its
    own streams.
    """
    place = [seed, zlib.crc32(layer.name.encode()), layer.start]
    if compiles(layer.taus.device):
        return (_by_numpy(place, tau) for tau in layer.taus)
    words = layer.taus.detach().reshape(len(layer.taus), layer.pretrained.numel()).view(torch.int32)
    contents = words.sum(1, dtype=torch.int64).tolist()  # the host waits once
    return (_by_torch([*place, content], tau) for content, tau in zip(contents, layer.taus, strict=True))


def _by_numpy(place: list[int], tau: Tensor) -> Tensor:
    """SFC64 takes a fifth of the time of torch's Bernoulli."""
    content = int(np.add.reduce(_words(tau))) % (1 << 64)
    words = np.random.SFC64([*place, content]).random_raw(-(-tau.numel() // 4))
    return torch.from_numpy(words.view(np.int16)[: tau.numel()]).reshape(tau.shape)


def _words(tau: Tensor) -> np.ndarray:
    """τ_t as 64-bit integers, the last one padded with zeros."""
    raw = tau.detach().contiguous().reshape(-1).numpy().view(np.int32)
    return np.append(raw, np.int32(0)).view(np.int64) if len(raw) % 2 else raw.view(np.int64)


def _by_torch(key: list[int], tau: Tensor) -> Tensor:
    seed = int(np.random.SeedSequence([one % (1 << 64) for one in key]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    draws = torch.empty(tau.shape, dtype=torch.int16, device=tau.device)
    return draws.random_(-LEVELS // 2, LEVELS // 2, generator=generator(tau.device, seed))
