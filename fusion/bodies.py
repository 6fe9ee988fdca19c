"""The body that models with different heads share, by the names that the pre-trained model has for it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fusion.architecture import is_embedding
from fusion.checkpoint import Checkpoint, is_float, save_tensors, shape
from fusion.sharded import FORMAT
from fusion.vectors import TaskVectors

Names = Mapping[str, str]


class View(Mapping[str, Tensor]):
    """Some tensors of a model under other names; read when asked for. names: the model's name of each."""

    def __init__(self, model: Mapping[str, Tensor], names: Names) -> None:
        self.model, self.names = model, names

    def __getitem__(self, name: str) -> Tensor:
        return self.model[self.names[name]]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return repr(self.model)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, as the model tells it."""
        return shape(self.model, self.names[name])

    def is_float(self, name: str) -> bool:
        """Whether a tensor is of a floating-point type, as the model tells it."""
        return is_float(self.model, self.names[name])


class Bodies(NamedTuple):
    """Models apart: what all share, by the names of the pre-trained model, and the rest of each, by its own."""

    base: Checkpoint
    models: list[View]
    heads: list[View]
    left_out: list[str]  # of the pre-trained model, what not all have


def bodies(base: Checkpoint, models: Sequence[Mapping[str, Tensor]]) -> Bodies:
    """The models without what is not in all of them and in P, as a head is that was made for one task.

    ValueError where that leaves no more than half of P's parameters: such models are not of one kind.
    """
    known = [_names(model, base) for model in models]
    shared = [n for n in base if all(_has(model, names, base, n) for model, names in zip(models, known, strict=True))]
    share = _count(base, shared) / max(1, _count(base, base))
    if share <= 0.5:
        raise ValueError(
            f"{', '.join(map(repr, models))} have {len(shared)} of the {len(base)} tensors of {base!r} in common, "
            f"{100 * share:.0f} % of its parameters; expected most of them: models fine-tuned from it"
        )
    views = [View(model, {n: names[n] for n in shared}) for model, names in zip(models, known, strict=True)]
    return Bodies(base.only(shared), views, [_rest(view) for view in views], _without(base, shared))


def left_out(apart: Bodies, base: Checkpoint, files: Sequence[Path]) -> Iterator[str]:
    """A line about every model of which some tensors are not merged; files: where those of each go."""
    for head, file in zip(apart.heads, files, strict=True):
        if head:
            yield f"left out: {_some(list(head))} of {head!r}, kept as is in {file}"
    if apart.left_out:
        yield f"left out: {_some(apart.left_out)} of {base!r}, which not all models have"


def save_heads(heads: Sequence[View], files: Sequence[Path]) -> None:
    """Writes the tensors that only one model has, where it has any."""
    for head, file in zip(heads, files, strict=False):  # without --heads there are none
        if head:
            save_tensors(file, head, FORMAT)


def hint(base: Checkpoint, models: Sequence[Mapping[str, Tensor]]) -> str:
    """How models that do not fit as they are can be merged, as the end of an error; nothing where they cannot."""
    try:
        found = bodies(base, models)
        TaskVectors(found.base, found.models)
    except ValueError:
        return ""
    return (
        f"; --heads keep merges the {len(found.base)} of the {len(base)} tensors of {base!r} that all have, under "
        "whatever prefix, and leaves every model its own others"
    )


def _names(model: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Names:
    """The model's name of each tensor of P that it has: the same, or with one prefix, 'bert.', more or less."""
    found = [{name: name for name in base if name in model}]
    for prefix in _prefixes(model):
        found.append({name: prefix + name for name in base if prefix + name in model})
    for prefix in _prefixes(base):
        cut = {name: name.removeprefix(prefix) for name in base if name.startswith(prefix)}
        found.append({name: other for name, other in cut.items() if other in model})
    return max(found, key=len)  # the first of them, so the same names where those do as well


def _prefixes(names: Mapping[str, Tensor]) -> list[str]:
    """What names begin with: their first part or two, as in 'model.' and 'model.vision_model.'."""
    split = [name.split(".") for name in names]
    return sorted({".".join(parts[:count]) + "." for parts in split for count in (1, 2) if len(parts) > count})


def _rest(view: View) -> View:
    """The tensors of its model that are not in a view, by their own names."""
    return View(view.model, {name: name for name in _without(view.model, view.names.values())})


def _without(names: Iterable[str], others: Iterable[str]) -> list[str]:
    excluded = set(others)
    return [name for name in names if name not in excluded]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:4])) + (f" … ({len(names)} tensors)" if len(names) > 4 else "")


def _has(model: Mapping[str, Tensor], names: Names, base: Mapping[str, Tensor], name: str) -> bool:
    """Whether the model has that tensor of P; in another shape, only where that is no head but an error."""
    return name in names and (is_embedding(name) or shape(model, names[name]) == shape(base, name))


def _count(base: Mapping[str, Tensor], names: Sequence[str] | Mapping[str, Tensor]) -> int:
    return sum(torch.Size(shape(base, name)).numel() for name in names if is_float(base, name))
