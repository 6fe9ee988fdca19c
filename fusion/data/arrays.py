"""Pictures as numbers: tables of grey values, and arrays in IDX files or pickles."""

import io
import pickle
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from fusion.data.archives import unzipped
from fusion.data.formats import PixelsFormat
from fusion.data.images import Stored, encoded, held

IDX_BYTES = 0x08  # the type code of unsigned bytes in an IDX file


def pixels(content: bytes, form: PixelsFormat, name: str) -> Iterator[tuple[Stored, str]]:
    """Picture and class of every row of a table of grey values; ValueError where it is not such a table."""
    try:
        table = np.loadtxt(io.StringIO(unzipped(content).decode()), delimiter=",", ndmin=2)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is no table of numbers: {error}") from error
    expected = form.height * form.width + 1
    if table.shape[1] != expected:
        raise ValueError(
            f"{name} has {table.shape[1]} columns; expected {expected}: {form.height} × {form.width} values and a class"
        )
    values, labels = table[:, :-1], table[:, -1]
    if not ((values >= 0) & (values <= form.maximum)).all():  # nor is NaN
        raise ValueError(f"{name} has values from {values.min()} to {values.max()}; expected 0 to {form.maximum}")
    grey = np.rint(values * (255 / form.maximum)).astype(np.uint8).reshape(-1, form.height, form.width)
    return ((held(encoded(one)), f"{label:g}") for one, label in zip(grey, labels, strict=True))


def arrays(images: bytes, labels: bytes, name: str) -> Iterator[tuple[Stored, str]]:
    """Picture and class of every element of two arrays."""
    pictures, classes = _array(images, name), _array(labels, name)
    if pictures.ndim not in (3, 4) or (pictures.ndim == 4 and pictures.shape[3] != 3) or pictures.dtype != np.uint8:
        raise ValueError(f"{name}: got pictures of {pictures.dtype} {pictures.shape}, expected uint8 (n, h, w) or RGB")
    if classes.shape != pictures.shape[:1]:
        raise ValueError(f"{name}: {len(pictures)} pictures and classes of shape {classes.shape}; expected as many")
    return ((held(encoded(one)), str(label)) for one, label in zip(pictures, classes.tolist(), strict=True))


def _array(content: bytes, name: str) -> np.ndarray:
    data = unzipped(content)
    if data[:1] == b"\x80":
        return _unpickled(data, name)
    if len(data) < 4 or data[:3] != bytes([0, 0, IDX_BYTES]):
        raise ValueError(f"{name} is neither an IDX file of bytes nor a pickled array; it begins with {data[:4]!r}")
    rank = data[3]
    if len(data) < 4 + 4 * rank:
        raise ValueError(f"{name} is cut short: {len(data)} bytes, and an array of rank {rank} has a longer header")
    shape = struct.unpack_from(f">{rank}I", data, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape):
        raise ValueError(f"{name} is cut short: {values.size:,} bytes of an array {shape}")
    return values.reshape(shape)


class _ArraysOnly(pickle.Unpickler):
    """Reads a pickle that names nothing but what a plain numpy array is made of: no code can run."""

    ALLOWED = {
        *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),  # protocol 2 writes bytes as encoded text
        *(("numpy._core.multiarray", "_reconstruct"), ("numpy._core.numeric", "_frombuffer")),
    }

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # its name before numpy 2
        if (module, name) not in self.ALLOWED:
            raise ValueError(f"it names {module}.{name}, and only plain numpy arrays are read")
        return super().find_class(module, name)


def _unpickled(data: bytes, name: str) -> np.ndarray:
    try:
        found = _ArraysOnly(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{name} holds no pickled numpy array: {error}") from error
    if not isinstance(found, np.ndarray) or found.dtype.hasobject:
        raise ValueError(f"{name} holds a {type(found).__name__}, expected a numpy array of numbers")
    return found
