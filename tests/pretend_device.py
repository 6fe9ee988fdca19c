"""A second device without a GPU: tensors that say they are elsewhere, hold real numbers, and compute on the CPU.

    with PretendDevice() as seen:
        a = torch.randn(4, 4).to(THERE)
        (a @ a).sum().item()  # real numbers
        a + torch.ones(4, 4)  # Mismatch, as on a GPU
        a.numpy()  # refused, as on a GPU
    seen.moved, seen.waits  # bytes that crossed between the devices; how often the host waited for the other one
    seen.peak  # the most bytes that were there at a time

    with PretendDevice(capacity=1000):
        torch.zeros(251, device=THERE)  # OutOfMemoryError, as on a GPU

The device goes by the name of 'meta', which no method and no small network uses otherwise. The mode belongs to one
thread: what other threads make there without an input from there has no numbers, and fails when it is used.
"""

import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

THERE = torch.device("meta")
MOVES = {"aten::_to_copy", "aten::copy_"}
# What a GPU takes from both sides: a copy, and indices that are on the CPU.
MIXES = {*MOVES, "aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_"}
# What a GPU must count before the host knows the shape of the result, besides single numbers.
COUNTS = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_consecutive", "aten::bincount"}
COUNTS |= {"aten::repeat_interleave.Tensor", "aten::equal"}


class Mismatch(RuntimeError):
    """An operation on tensors of two devices."""


@dataclass
class Seen:
    """What crossed between the devices, in bytes, how often the host waited for a number from there, and the memory
    that was taken there, now and at most, of so many bytes."""

    moved: int = 0
    waits: int = 0
    taken: int = 0
    peak: int = 0
    capacity: float = math.inf

    def take(self, tensor: "Elsewhere") -> None:
        """Counts a tensor's memory once, however many views there are of it, until the last is gone."""
        storage = tensor.inner.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if not key:
            return
        if key not in _VIEWS:
            if self.taken + size > self.capacity:
                raise torch.OutOfMemoryError(f"Tried to allocate {size} bytes, {self.capacity - self.taken} are free.")
            self.taken += size
            self.peak = max(self.peak, self.taken)
        _VIEWS[key] = _VIEWS.get(key, 0) + 1
        weakref.finalize(tensor, self._give_back, key, size)

    def _give_back(self, key: int, size: int) -> None:
        _VIEWS[key] -= 1
        if not _VIEWS[key]:
            del _VIEWS[key]
            self.taken -= size


_VIEWS: dict[int, int] = {}  # how many tensors there are of each storage


class Elsewhere(Tensor):
    """A tensor on the other device; `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Elsewhere":
        found = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=THERE,
        )  # fmt: skip
        found.inner = inner
        PretendDevice.seen.take(found)
        return found

    def tolist(self) -> Any:
        """One wait, as on a GPU."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})  # in a worker's thread, where the mode is not on


class PretendDevice(TorchDispatchMode):
    """While it is on, tensors that are made on THERE, or moved to it, have numbers."""

    seen = Seen()

    def __init__(self, capacity: float = math.inf) -> None:
        super().__init__()
        self._capacity = capacity

    def __enter__(self) -> Seen:
        PretendDevice.seen = Seen(capacity=self._capacity)
        super().__enter__()
        return PretendDevice.seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@torch.inference_mode(False)  # a view of what is no inference tensor must be none, which a wrapper would be
def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the numbers, and its result where a GPU would have it; Mismatch where a GPU has none."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, Elsewhere)]
    here = [x for x in tensors if not isinstance(x, Elsewhere)]
    if any(x.device == THERE for x in here):
        raise Mismatch(f"{func.name()}: a tensor without numbers, made where the pretended device cannot see it")
    wanted, name = kwargs.get("device"), func.name()
    is_asked_for = wanted is not None and torch.device(wanted).type == THERE.type
    if not there and not is_asked_for:
        return func(*args, **kwargs)
    if there and name not in MIXES and any(x.dim() > 0 for x in here):
        shapes = [[tuple(x.shape) for x in side] for side in (there, here)]
        raise Mismatch(f"{name}: shapes {shapes[0]} on the other device, {shapes[1]} on the CPU")
    lands_there = bool(there)
    if wanted is not None:
        lands_there, kwargs = is_asked_for, kwargs | {"device": torch.device("cpu")}
    elif name == "aten::copy_":
        lands_there = isinstance(args[0], Elsewhere)
    _count(name, there, here, lands_there)
    plain_args, plain_kwargs = tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, (args, kwargs))
    given = {id(x.inner): x for x in there}  # an operation in place returns the tensor that it was given

    def there_too(x: Any) -> Any:
        if not isinstance(x, Tensor) or not lands_there:
            return x
        return given[id(x)] if id(x) in given else Elsewhere(x)

    return tree_map(there_too, func(*plain_args, **plain_kwargs))


def _count(name: str, there: Iterable[Tensor], here: Iterable[Tensor], lands_there: bool) -> None:
    seen, sources = PretendDevice.seen, [*there, *here]
    if name in MOVES and sources and (any(not isinstance(x, Elsewhere) for x in sources) or not lands_there):
        seen.moved += max(x.numel() * x.element_size() for x in sources)
        seen.waits += not lands_there
    if name == "aten::_local_scalar_dense" or name in COUNTS:
        seen.waits += 1
    if name in ("aten::index.Tensor", "aten::index_put_") and any(x.dtype is torch.bool for x in there):
        seen.waits += 1
