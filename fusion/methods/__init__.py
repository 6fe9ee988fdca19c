"""The fusion algorithms: one a file, each the function of its file's name."""

from collections.abc import Callable
from importlib import import_module

from fusion.hyperparameters import algorithms
from fusion.vectors import Merged


def load(name: str) -> Callable[..., Merged]:
    """The algorithm of that name; ValueError names all when there is none."""
    if name not in algorithms():
        raise ValueError(f"unknown algorithm {name!r}; expected one of {', '.join(algorithms())}")
    return getattr(import_module(f"{__name__}.{name}"), name)
