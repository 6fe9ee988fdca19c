"""Data sets of a hub, at a pinned revision; offline where the hub's cache has them."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fusion.data.images import Stored
from fusion.data.rows import HubFormat


def examples(
    path: str, config: str | None, revision: str | None, split: str, form: HubFormat, classes: Sequence[str]
) -> Iterator[tuple[Stored, str]]:
    """Picture and class of every example of a split; ValueError where the data set is not as the row says."""
    from datasets import ClassLabel, Dataset, Image, load_dataset

    name = f"{path} ({split})"
    try:
        data = load_dataset(path, config, split=split, revision=revision)
    except Exception as error:  # the hub's, the network's, and those of the file formats
        raise ValueError(
            f"cannot load the data set {name}: {error}. Is there a network, or a copy in the hub's cache (HF_HOME)?"
        ) from error
    assert isinstance(data, Dataset)
    if missing := {form.image, form.label} - set(data.column_names):
        raise ValueError(f"{name} has no column {sorted(missing)}; it has {data.column_names} (config/tasks.yaml)")
    kind = data.features[form.label]
    if isinstance(kind, ClassLabel) and len(kind.names) != len(classes):
        raise ValueError(f"{name} has {len(kind.names)} classes, `classes` has {len(classes)} (config/tasks.yaml)")
    pictures = data.select_columns(form.image).cast_column(form.image, Image(decode=False))
    for number, label in enumerate(data[form.label]):
        if not 0 <= int(label) < len(classes):
            raise ValueError(f"{name}: label {label} of {len(classes)} classes; check `classes` (config/tasks.yaml)")
        yield Stored.at(partial(_content, pictures, form.image, number)), classes[int(label)]


def _content(pictures: Any, column: str, number: int) -> bytes:
    image = pictures[number][column]
    return image["bytes"] or Path(image["path"]).read_bytes()
