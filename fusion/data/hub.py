"""Data sets of a hub, at a pinned revision, offline where the hub's cache has them; labels that have names."""

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fusion.data.formats import HubFormat
from fusion.data.images import Stored, same_name

if TYPE_CHECKING:
    from datasets import Dataset

ENCODED = {"binary", "large_binary", "string", "large_string"}  # columns of a picture's bytes, or of its path


def open_split(path: str, config: str | None, revision: str | None, split: str) -> tuple["Dataset", str | None]:
    """A split of a data set, and the hub's commit that was read, None of a local one.

    Without a network, it is read from what the library has made of it, or from a snapshot in the hub's cache.
    ValueError where it cannot be had, or what is there is of another commit: the library takes the newest that it has,
    whatever revision it was asked for.
    """
    name = f"{path} ({split})"
    try:
        data, commit = _load(path, config, revision, split)
    except Exception as error:  # the hub's, the network's, and those of the file formats
        raise ValueError(
            f"cannot load the data set {name}: {error}. Is there a network, or a copy in the hub's cache (HF_HOME)?"
        ) from error
    if commit and re.fullmatch("[0-9a-f]{7,40}", revision or "") and not commit.startswith(revision or ""):
        raise ValueError(
            f"{name}: got commit {commit}, expected `revision` {revision}. Without a network the newest commit in the "
            "hub's cache is read: load the other one with a network, or correct `revision` (config/tasks.yaml)"
        )
    return data, commit


def _load(path: str, config: str | None, revision: str | None, split: str) -> tuple[Any, str | None]:
    from datasets import load_dataset

    try:
        data: Any = load_dataset(path, config, split=split, revision=revision)
    except Exception:  # without a network ConnectionError, or what the HTTP client raises: it depends on what is cached
        folder = _snapshot(path, revision)
        if folder is None:
            raise
        return load_dataset(str(folder), config, split=split), folder.name
    # the library keeps what it makes of a data set in a folder that is named after the commit
    folder = Path(data.cache_files[0]["filename"]).parent.name if data.cache_files else ""
    return data, folder if re.fullmatch("[0-9a-f]{40}", folder) else None


def _snapshot(path: str, revision: str | None) -> Path | None:
    """The folder of a data set's files in the hub's cache, if it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, repo_type="dataset", revision=revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def examples(data: "Dataset", name: str, form: HubFormat, classes: Sequence[str]) -> Iterator[tuple[Stored | str, str]]:
    """Input and class of every example; ValueError where the data set `name` is not as the row says.

    A label that is text is a class's name. One that is a number is a name of the data set's own (a ClassLabel), or an
    index into `classes` where no such name is a key of `classes`. Where the data set has no names it is an index of a
    picture's class, and of a text it is the key.
    """
    if missing := {form.column, form.label} - set(data.column_names):
        raise ValueError(f"{name} has no column {sorted(missing)}; it has {data.column_names} (config/tasks.yaml)")
    names = class_names(own_names(data, form), name, classes)
    if form.text is not None:
        texts, labels = (Cells(column, list(data[column])) for column in (form.text, form.label))
        yield from labelled(texts, labels, name, names)
    else:
        yield from _pictures(data, name, form, names or list(classes))


def _pictures(data: "Dataset", name: str, form: HubFormat, names: Sequence[str]) -> Iterator[tuple[Stored, str]]:
    from datasets import Image

    kind = data.features[form.column]
    if not isinstance(kind, Image | Mapping) and getattr(kind, "dtype", "") not in ENCODED:
        raise ValueError(
            f"{name}: column {form.column!r} holds {kind}, expected pictures; name another column (config/tasks.yaml)"
        )
    pictures = data.select_columns(form.column).cast_column(form.column, Image(decode=False))
    labels = Cells(form.label, list(data[form.label]))
    for number, label in enumerate(classes_of(labels, name, names)):
        yield _stored(pictures, form.column, f"{name} row {number}", number), label


class Cells(NamedTuple):
    """The values of a column, and where each is: in a row, counted from 0, or on one of these lines."""

    column: str
    values: Sequence[Any]
    lines: Sequence[int] = ()

    def refuse(self, bad: Sequence[int], problem: str, name: str) -> None:
        """Nothing; ValueError that counts the values at these indices, and says where the first ones are."""
        if bad:
            unit, numbers = ("line", [self.lines[i] for i in bad[:10]]) if self.lines else ("row", bad[:10])
            places = ", ".join(map(str, numbers)) + (", …" if len(bad) > 10 else "")
            counted = f"{len(bad)} {unit}{'s' * (len(bad) > 1)}{'' if self.lines else ', counted from 0'}"
            raise ValueError(
                f"{name} {unit} {places}: column {self.column!r} {problem} ({counted}); correct or remove them there, "
                "or name another column (config/tasks.yaml)"
            )


def labelled(texts: Cells, labels: Cells, name: str, names: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Text and class of every example of the file `name`; ValueError that says where a value is none.

    names: the classes of the labels that are whole numbers; without them, labels are what they are written as.
    """
    texts.refuse(_empty(texts), "is empty", name)
    if other := [i for i, text in enumerate(texts.values) if not _is_text(text)]:
        texts.refuse(other, f"has {repr(texts.values[other[0]])[:80]}, expected text", name)
    return list(zip(texts.values, classes_of(labels, name, names), strict=True))


def classes_of(labels: Cells, name: str, names: Sequence[str]) -> list[str]:
    """The class of every label, as `labelled` says; ValueError that says where a label is none."""
    labels.refuse(_empty(labels), "is empty", name)
    classes = [_written(label, names) for label in labels.values]
    if other := [i for i, label in enumerate(classes) if label is None]:
        wanted = f"a number below {len(names)}, that of a class," if names else "a number, true or false,"
        labels.refuse(other, f"has {repr(labels.values[other[0]])[:80]}, expected {wanted} or text", name)
    return [str(label) for label in classes]


def _empty(cells: Cells) -> list[int]:
    return [i for i, value in enumerate(cells.values) if value is None or value != value]


def _is_text(value: Any) -> bool:
    """Whether it is text that can be stored: JSON can also write halves of a character."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _written(label: Any, names: Sequence[str]) -> str | None:
    """The label as a key of `classes` is written, None of what cannot be one."""
    if isinstance(label, float | Decimal) and label % 1 == 0:
        label = int(label)
    if isinstance(label, str):
        return label
    if names:
        return names[label] if isinstance(label, int) and 0 <= label < len(names) else None
    return str(label).lower() if isinstance(label, int | float | Decimal) else None


def other_names(names: list[str], classes: Sequence[str]) -> list[str]:
    """The data set's own names of its classes where none is a key of `classes`, so that only the order counts."""
    return [] if {_folded(name) for name in names} & {_folded(key) for key in classes} else names


def class_names(names: list[str], name: str, classes: Sequence[str]) -> list[str]:
    """The class of every label that is a number, where the data set has `names` of its own.

    ValueError where these are other classes than `classes`.
    """
    if other_names(names, classes):
        if len(names) != len(classes):
            raise ValueError(f"{name} has {len(names)} classes, `classes` has {len(classes)} (config/tasks.yaml)")
        return list(classes)
    if names and sorted(map(same_name, names)) != sorted(map(same_name, classes)):
        raise ValueError(
            f"{name} has the classes {names}, `classes` has the keys {list(classes)}; expected the same names in any "
            "order, or none in common, where the order counts (config/tasks.yaml)"
        )
    return names


def own_names(data: "Dataset", form: HubFormat) -> list[str]:
    """The data set's own names of its classes, none where it has only numbers or text."""
    from datasets import ClassLabel

    kind = data.features.get(form.label)
    return kind.names if isinstance(kind, ClassLabel) else []


def _folded(name: str) -> str:
    return same_name(name).strip().casefold()


def _stored(pictures: Any, column: str, name: str, number: int) -> Stored:
    """A picture that is called by its row, and its file where it has one; ValueError where there is none."""
    image = pictures[number][column]
    if image is None:
        raise ValueError(f"{name}: column {column!r} is empty; remove the row there (config/tasks.yaml)")
    full = name + (f" ({image['path']})" if image["path"] else "")
    try:
        return Stored.at(partial(_content, pictures, column, number), full)
    except OSError as error:
        raise ValueError(f"picture {full} cannot be read: {error.strerror}; replace or remove it") from error


def _content(pictures: Any, column: str, number: int) -> bytes:
    image = pictures[number][column]
    return image["bytes"] or Path(image["path"]).read_bytes()
