"""Task vectors that a method reads at every step: in the device's memory where there is room, else in the host's.

What stays on the host crosses to the device once a step and layer, in the forward pass, and once more in the backward
pass: neither keeps it there.
"""

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fusion.device import free_bytes, onto

if TYPE_CHECKING:
    from fusion.vectors import Layer, TaskVectors

log = logging.getLogger(__name__)

SHARE = 0.5  # of the free memory that task vectors may take; activations, gradients and moments need the rest


def held(taus: "TaskVectors") -> "list[Layer]":
    """Every layer, θ0 on the device of the task vectors and τ there too or on the host, pinned; a line says which."""
    if not (size := beyond(len(taus) * taus.count() * 4, taus.device)):
        return list(taus.layers())
    log.warning("%s: task vectors stay on the host and are streamed", size)
    return [layer._replace(taus=to_host(layer.taus)) for layer in taus.layers()]


def beyond(size: int, place: torch.device) -> str:
    """Why so many bytes are too many to stay on the device; empty where they are not."""
    free = free_bytes(place)
    if size <= SHARE * free:
        return ""
    return f"{size / 1e9:.1f} GB of task vectors, {free / 1e9:.1f} GB free on {place}"


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the host, from which a GPU can read without asking it."""
    return tensor.cpu().pin_memory() if tensor.is_cuda else tensor.cpu()


def read(function: Callable[..., Tensor], kept: Iterable[Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs, *kept), differentiable in the inputs, on their device; what is kept may be on the host.

    What crosses is not kept for the backward pass, which has it cross again.
    """
    kept, place = tuple(kept), inputs[0].device
    if all(one.device == place for one in kept):
        return function(*inputs, *kept)

    def there(*given: Tensor) -> Tensor:
        return function(*given, *(onto(place, one) for one in kept))

    return checkpoint(there, *inputs, use_reentrant=False, preserve_rng_state=False)
