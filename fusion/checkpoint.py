"""Parameters on disk: safetensors, read lazily and written one tensor at a time."""

import json
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fusion.artifacts import new_file

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
NAMES = ("model.safetensors", "adapter_model.safetensors")


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of one safetensors file, or of the one that a model folder holds; read when asked for.

    Raises ValueError naming the file when it is missing, truncated or not safetensors.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = _file(Path(path))
        try:
            self._file = safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path} is not a whole safetensors file ({error}); make it again") from error
        self._names = tuple(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._file.get_tensor(name)
        except SafetensorError as error:
            raise KeyError(f"no tensor {name!r} in {self.path}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return str(self.path)

    def only(self, names: Iterable[str]) -> "Checkpoint":
        """The same file with these tensors alone."""
        view = copy(self)
        view._names = tuple(names)
        return view

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header alone."""
        return tuple(self._file.get_slice(name).get_shape())

    @property
    def metadata(self) -> dict[str, str]:
        """The free-form strings of the header."""
        return self._file.metadata() or {}


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in NAMES if (path / name).is_file()]
    if len(found) != 1:
        raise ValueError(f"{path}: got {len(found)} of the files {NAMES}, expected exactly one")
    return found[0]


def shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a named tensor, without reading it where the mapping can tell."""
    return tensors.shape(name) if isinstance(tensors, Checkpoint) else tuple(tensors[name].shape)


def save(
    path: str | Path,
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file atomically, holding one tensor at a time.

    layout: dtype and shape of every tensor; tensors: the same names in the same order. In the file, tensors of
    wide types come first, as the format's own writer has it, so that all are aligned.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata or {})}
    starts: dict[str, int] = {}
    offset = 0
    for name, (dtype, size) in sorted(layout.items(), key=lambda item: -item[1][0].itemsize):
        starts[name], count = offset, torch.Size(size).numel() * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(size), "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    expected = iter(layout)
    with new_file(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            assert name == next(expected, None) and layout[name] == (tensor.dtype, tuple(tensor.shape)), name
            file.seek(8 + len(text) + starts[name])
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        assert next(expected, None) is None, "fewer tensors than the layout names"


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors that are in memory as a safetensors file, atomically."""
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    save(path, layout, tensors.items(), metadata)
