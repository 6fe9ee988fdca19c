"""Task vectors that a method reads at every step: in the device's memory where there is room, else in the host's.

What stays on the host crosses to the device once a step and layer, in the forward pass, and once more in the backward
pass: neither keeps it there. Where there seemed to be room and was none, `within_memory` begins anew with the host.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fusion.device import free_bytes, onto

if TYPE_CHECKING:
    from fusion.vectors import Layer, TaskVectors

log = logging.getLogger(__name__)

SHARE = 0.5  # of the free memory that task vectors may take; activations, gradients and moments need the rest
Made = TypeVar("Made")


@dataclass
class _State:
    """Whether task vectors are on the device, and whether they may be."""

    is_resident: bool = False
    may_be_resident: bool = True


_state = _State()


def held(taus: "TaskVectors") -> "list[Layer]":
    """Every layer, θ0 on the device of the task vectors and τ there too or on the host, pinned; a line says why."""
    size, free = len(taus) * taus.count() * 4, free_bytes(taus.device)
    if _state.may_be_resident and size <= SHARE * free:
        _state.is_resident = taus.device.type != "cpu"
        return list(taus.layers())
    why = f"{size / 1e9:.3g} GB of task vectors, {free / 1e9:.3g} GB free on {taus.device}"
    log.warning("%s: they stay on the host and are streamed", why)
    return [layer._replace(taus=to_host(layer.taus)) for layer in taus.layers()]


def within_memory(make: Callable[[], Made]) -> Made:
    """make(); where the device has not enough memory for it, again with the task vectors of `held` on the host.

    torch.OutOfMemoryError where that is too much too, or nothing was held.
    """
    _state.is_resident = False
    try:
        return make()
    except torch.OutOfMemoryError as error:
        if not _state.is_resident:
            raise
        log.warning("%s Again from the start, with less on the device", error)
    torch.cuda.empty_cache()
    _state.may_be_resident = False
    try:
        return make()
    finally:
        _state.may_be_resident = True


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
