"""Data sets of a hub, at a pinned revision, offline where the hub's cache has them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion.data.columns import Cells, class_names, classes_of, column, labelled
from fusion.data.formats import HubFormat
from fusion.data.images import Stored

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
        from datasets.exceptions import DatasetGenerationError

        reason = error.__cause__ if isinstance(error, DatasetGenerationError) else error  # which says what is wrong
        raise ValueError(
            f"cannot load the data set {name}: {reason}. Is there a network, or a copy in the hub's cache (HF_HOME)?"
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


def spelled(data: "Dataset", name: str, form: HubFormat) -> "Dataset":
    """The data set with its two columns named as the row spells them; ValueError where it has no such columns."""
    wanted = (form.column, form.label)
    names = {column(data.column_names, one, name): one for one in wanted}
    return data.rename_columns({there: one for there, one in names.items() if there != one})


def examples(data: "Dataset", name: str, form: HubFormat, classes: Sequence[str]) -> Iterator[tuple[Stored | str, str]]:
    """Input and class of every example, of columns that are `spelled`; ValueError where `name` is not as the row says.

    A label that is text is a class's name. One that is a number is a name of the data set's own (a ClassLabel), or an
    index into `classes` where no such name is a key of `classes`. Where the data set has no names it is an index of a
    picture's class, and of a text it is the key.
    """
    names = class_names(own_names(data, form), name, classes)
    if form.text is not None:
        texts, labels = (Cells(one, list(data[one])) for one in (form.text, form.label))
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


def own_names(data: "Dataset", form: HubFormat) -> list[str]:
    """The data set's own names of its classes, none where it has only numbers or text."""
    from datasets import ClassLabel

    kind = data.features.get(form.label)
    return kind.names if isinstance(kind, ClassLabel) else []


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
