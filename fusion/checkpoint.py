"""Parameters on disk: safetensors, read lazily and written one tensor at a time."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fusion.artifacts import new_file
from fusion.finding import INDEX, open_file, shards, tensor_file

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]  # of every tensor of a file, in the order of writing

LATE = 1 << 10  # bytes of room for metadata that is known when all tensors are written
AT_ONCE = 1 << 30  # bytes; Linux writes at most 2 GiB a call


@runtime_checkable
class Shaped(Protocol):
    """Named tensors whose shapes and types are known without reading them."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def is_float(self, name: str) -> bool: ...


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of one safetensors file, or of a model folder, sharded or not; read when asked for.

    Raises ValueError naming the file when it is missing, truncated or not safetensors, or when a shard lacks a
    tensor that the folder's index promises. path: the file, or the index of a sharded folder; files: all that hold
    tensors.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = tensor_file(Path(path))
        promised = shards(self.path) if self.path.name == INDEX else {}
        self.files = tuple(self.path.with_name(name) for name in sorted(set(promised.values()))) or (self.path,)
        opened = {file.name: open_file(file) for file in self.files}
        self._first = next(iter(opened.values()))
        self._holder = {name: file for file in opened.values() for name in file.offset_keys()}
        for name, shard in promised.items():
            if self._holder.get(name) is not opened[shard]:
                raise ValueError(f"{self.path} says that {name!r} is in {shard}, which has no such tensor")
        self._names = dict.fromkeys(self._holder)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(f"no tensor {name!r} in {self.path}")
        return self._holder[name].get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return str(self.path)

    def only(self, names: Iterable[str]) -> "Checkpoint":
        """The same file with these tensors alone."""
        view = copy(self)
        view._names = dict.fromkeys(names)
        return view

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header alone."""
        return tuple(self._holder[name].get_slice(name).get_shape())

    def is_float(self, name: str) -> bool:
        """Whether a tensor is of a floating-point type, from the header alone."""
        return "F" in self._holder[name].get_slice(name).get_dtype()  # F32, BF16, F8_E4M3; I64, U8, BOOL

    @property
    def metadata(self) -> dict[str, str]:
        """The free-form strings of the header, of a sharded model's first file."""
        return self._first.metadata() or {}


def shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a named tensor, without reading it where the mapping can tell."""
    return tensors.shape(name) if isinstance(tensors, Shaped) else tuple(tensors[name].shape)


def is_float(tensors: Mapping[str, Tensor], name: str) -> bool:
    """Whether a named tensor is of a floating-point type, without reading it where the mapping can tell."""
    return tensors.is_float(name) if isinstance(tensors, Shaped) else tensors[name].is_floating_point()


def save(
    path: str | Path,
    layout: Layout,
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
) -> None:
    """Writes a safetensors file atomically, holding one tensor at a time.

    layout: dtype and shape of every tensor; tensors: the same names in the same order. In the file, tensors of
    wide types come first, as the format's own writer has it, so that all are aligned. metadata: as a function, it is
    asked when all tensors are written.
    """
    header, starts = _header(layout, {"": " " * LATE} if callable(metadata) else metadata or {})
    expected = iter(layout)
    with new_file(path) as temporary, open(temporary, "wb", buffering=0) as file:
        _write(file.fileno(), memoryview(header), 0)
        for name, tensor in tensors:
            assert name == next(expected, None) and layout[name] == (tensor.dtype, tuple(tensor.shape)), name
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            _write(file.fileno(), data, len(header) + starts[name])
        assert next(expected, None) is None, "fewer tensors than the layout names"
        if callable(metadata):
            _write(file.fileno(), memoryview(_header(layout, metadata(), len(header))[0]), 0)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors that are in memory as a safetensors file, atomically."""
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    save(path, layout, tensors.items(), metadata)


def size(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return torch.Size(shape).numel() * dtype.itemsize


def _header(layout: Layout, metadata: Mapping[str, str], room: int = 0) -> tuple[bytes, dict[str, int]]:
    """What the file begins with, in so many bytes where `room` says, and where each tensor starts after it."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    starts: dict[str, int] = {}
    offset = 0
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: -item[1][0].itemsize):
        starts[name], end = offset, offset + size(dtype, shape)
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = room - 8 if room else len(text) + -len(text) % 8
    assert len(text) <= length, "more metadata than there is room for"
    text = text.ljust(length)
    return len(text).to_bytes(8, "little") + text, starts


def _write(file: int, data: memoryview, start: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done : done + AT_ONCE], start + done)
