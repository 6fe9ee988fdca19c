"""Corrupted pictures of the benchmark of common corruptions (Hendrycks and Dietterich, arXiv:1903.12261)."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from fusion.data.images import Picture, encoded

SMALLEST = 32  # pixels a side: the library takes no smaller pictures
OWN_GENERATOR = {"impulse_noise"}  # those that the library draws from a seed it is given, not from numpy's global one


def corrupted(picture: Picture, kind: str, severity: int) -> bytes:
    """The picture under a corruption, encoded without loss; the same for equal inputs, whatever was drawn before.

    kind and severity (1 to 5) are those of the package imagecorruptions, whose functions are the benchmark's own. They
    see the picture at its own size, where the benchmark's see 224 × 224 pixels; one with a side below SMALLEST is
    enlarged until it has none, and stays so. The seed is the SHA-256 of the encoded picture. Not for several threads
    at once: numpy's global generator is seeded meanwhile. Raises ValueError where the picture cannot be decoded, and
    ImportError where a library of the system is missing.
    """
    corrupt = _library()
    array = np.asarray(_enlarged(picture.rgb()))
    seed = int.from_bytes(hashlib.sha256(picture.content).digest()[:4], "big")
    given = {"seed": seed} if kind in OWN_GENERATOR else {}
    try:
        with _seeded(seed), np.errstate(invalid="raise"):
            return encoded(corrupt(array, severity=severity, corruption_name=kind, **given))
    except FloatingPointError:  # spatter divides 0 by 0 where no drop falls on a picture, and would blacken it
        return encoded(array)


def _library() -> Callable[..., np.ndarray]:
    """The package's function, imported by the jobs that corrupt alone, since that takes a second or two."""
    try:
        from imagecorruptions import corrupt
    except ImportError as error:
        raise ImportError(
            f"cannot import imagecorruptions, which corrupts pictures: {error}; where a library such as libGL is "
            "missing, install it in the system, or opencv-python-headless in place of opencv-python"
        ) from error
    return corrupt


def _enlarged(image: Image.Image) -> Image.Image:
    factor = SMALLEST / min(image.size)
    if factor <= 1:
        return image
    width, height = (max(SMALLEST, round(factor * side)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """numpy's global generator at a seed, and afterwards as it was."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
