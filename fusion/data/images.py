"""Pictures: from any source to encoded bytes, and from those to RGB."""

import hashlib
import io
import re
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fusion.data.columns import same_name
from fusion.files import is_system, walk

warnings.filterwarnings("ignore", module=r"PIL\.")  # of large pictures and odd metadata: what matters is an error

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # none that runs a program, as EPS does
LARGEST = 100_000_000  # pixels: a few kilobytes can decode to any number of them
BITS_PER_SAMPLE, MAX_SAMPLE_VALUE = 258, 281  # tags of a TIFF
BATCH = 1024  # pictures that wait for them at a time
LISTED = 20  # of those that cannot be decoded

Prepared = NDArray[np.uint8]  # a picture as a model takes it, (3, H, W)


@dataclass(frozen=True, order=True)
class Stored:
    """An encoded picture where its source has it.

    key: the SHA-256 of its bytes; read: returns those; name: where they are, for messages, '' if nowhere of their own.
    """

    key: str
    read: Callable[[], bytes] = field(compare=False)
    name: str = field(default="", compare=False)

    @classmethod
    def at(cls, read: Callable[[], bytes], name: str = "") -> "Stored":
        """What `read` returns, looked at once and not held."""
        return cls(hashlib.sha256(read()).hexdigest(), read, name)

    def content(self, name: str) -> bytes:
        """The bytes; ValueError with the name where they are no longer those that the key is of."""
        content = self.read()
        if (found := hashlib.sha256(content).hexdigest()) != self.key:
            raise ValueError(f"picture {name} changed meanwhile: its SHA-256 is {found}, was {self.key}; run again")
        return content


class Picture(NamedTuple):
    """An encoded picture, and what to call it in a message."""

    name: str
    content: bytes

    def rgb(self) -> Image.Image:
        """The decoded picture, the first of an animation, in RGB; ValueError naming it where it cannot be decoded."""
        try:
            with Image.open(io.BytesIO(self.content), formats=FORMATS) as image:
                if image.width * image.height > LARGEST:
                    raise ValueError(f"it has {image.width} × {image.height} pixels; expected at most {LARGEST:,}")
                white = _white(image)  # which a turned picture no longer says
                return _plain(ImageOps.exif_transpose(image), white).convert("RGB")
        except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
            reason = re.sub(" <_io.BytesIO object at .*>", "", str(error))
            raise ValueError(f"picture {self.name} cannot be decoded: {reason}; replace or remove it") from error


def _white(image: Image.Image) -> int:
    """The value of white of a picture of 16-bit grey: 4095 where a TIFF says that its values have 12 bits."""
    tags = getattr(image, "tag_v2", {})
    return 4095 if tags.get(BITS_PER_SAMPLE) == (12,) or tags.get(MAX_SAMPLE_VALUE) in (4095, (4095,)) else 65535


def _plain(image: Image.Image, white: int) -> Image.Image:
    """A palette with transparency as RGBA, deep grey as 8-bit, which PIL would clip; others as they are.

    Whole numbers are 0 to `white`; those of floating point are 0 to 1, or 0 to 255. ValueError for any others.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = values.min(), values.max()
        if image.mode == "F":
            white, expected = (1 if high <= 1 else 255), "0 to 1 or 0 to 255"
        else:
            expected = f"0 to {white}"
        if not (low >= 0 and high <= white):  # nor is NaN
            raise ValueError(f"it has grey values from {low} to {high} in mode {image.mode}; expected {expected}")
        return Image.fromarray((values * (255 / white)).round().astype(np.uint8))
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


def encoded(array: np.ndarray) -> bytes:
    """A picture (height, width) or (height, width, 3) of bytes as PGM or PPM: no library decides its bytes."""
    magic, (height, width) = ("P5" if array.ndim == 2 else "P6"), array.shape[:2]
    return f"{magic}\n{width} {height}\n255\n".encode() + array.tobytes()


def held(content: bytes) -> Stored:
    """A picture that has no file of its own."""
    return Stored.at(partial(bytes, content))


def in_folders(folder: Path, classes: Sequence[str]) -> tuple[list[tuple[Stored, str]], Counter[str]]:
    """Every picture file in the subfolders of a folder with the name of its subfolder; how many files of each kind
    were skipped.

    Links are followed. ValueError where the subfolders are not those of the classes.
    """
    _check_folders(folder, classes)
    pictures, skipped = [], Counter[str]()
    for found in walk(folder):
        label, slash, _ = found.path.partition("/")
        if found.kind != "file":
            skipped[found.kind] += 1
        elif not slash:
            skipped["beside the class folders"] += 1
        elif Path(found.path).suffix.lower() not in SUFFIXES:
            skipped["not a picture"] += 1
        else:
            path = Path(found.entry.path)
            pictures.append((Stored.at(path.read_bytes, str(path)), label))
    return pictures, skipped


def _check_folders(folder: Path, classes: Sequence[str]) -> None:
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_system(path.name))
    there, expected = set(map(same_name, folders)), set(map(same_name, classes))
    if there != expected:
        raise ValueError(
            f"{folder} has the class folders {folders}, `classes` has the keys {list(classes)}; without a class are "
            f"{sorted(there - expected)}, without a folder {sorted(expected - there)}: rename, add or remove them "
            "there or in `classes` (config/tasks.yaml)"
        )


def check(pictures: Sequence[tuple[str, Stored]], threads: int = 1) -> None:
    """Decodes all named pictures, one in memory a thread; ValueError that counts those which cannot be decoded, and
    says why of the first."""
    with ThreadPoolExecutor(threads) as pool:
        errors = [
            error
            for start in range(0, len(pictures), BATCH)
            for error in pool.map(_error, pictures[start : start + BATCH])
            if error is not None
        ]
    if len(errors) == 1:
        raise ValueError(errors[0])
    if errors:
        more = f"\n… and {len(errors) - LISTED:,} more" if len(errors) > LISTED else ""
        raise ValueError(f"{len(errors):,} pictures cannot be used:\n" + "\n".join(errors[:LISTED]) + more)


def _error(named: tuple[str, Stored]) -> str | None:
    name, stored = named
    try:
        Picture(name, stored.content(name)).rgb()
    except (OSError, ValueError) as error:
        return str(error)
    return None
