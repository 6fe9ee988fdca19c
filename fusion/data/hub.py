"""Data sets of a hub, at a pinned revision; offline where the hub's cache has them."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.data.formats import HubFormat

if TYPE_CHECKING:
    from datasets import Dataset


def open_split(path: str, config: str | None, revision: str | None, split: str) -> "Dataset":
    """A split of a data set; ValueError where it cannot be had, or the cache has another commit of it.

    Offline, the library takes the newest commit in its cache, whatever revision it was asked for.
    """
    from datasets import Dataset, load_dataset

    name = f"{path} ({split})"
    try:
        data = load_dataset(path, config, split=split, revision=revision)
    except Exception as error:  # the hub's, the network's, and those of the file formats
        raise ValueError(
            f"cannot load the data set {name}: {error}. Is there a network, or a copy in the hub's cache (HF_HOME)?"
        ) from error
    assert isinstance(data, Dataset)
    found = commit(data)
    if found and re.fullmatch("[0-9a-f]{7,40}", revision or "") and not found.startswith(revision or ""):
        raise ValueError(
            f"{name}: got commit {found}, expected `revision` {revision}. Without a network the newest commit in the "
            "hub's cache is read: load the other one with a network, or correct `revision` (config/tasks.yaml)"
        )
    return data


def commit(data: "Dataset") -> str | None:
    """The hub's commit that was read: the library keeps it in a folder of that name. None of a local data set."""
    folder = Path(data.cache_files[0]["filename"]).parent.name if data.cache_files else ""
    return folder if re.fullmatch("[0-9a-f]{40}", folder) else None


def examples(data: "Dataset", name: str, form: HubFormat, classes: Sequence[str]) -> Iterator[tuple[bytes, str]]:
    """Encoded picture and class of every example; ValueError where the data set `name` is not as the row says."""
    from datasets import ClassLabel, Image

    if missing := {form.image, form.label} - set(data.column_names):
        raise ValueError(f"{name} has no column {sorted(missing)}; it has {data.column_names} (config/tasks.yaml)")
    kind = data.features[form.label]
    if isinstance(kind, ClassLabel) and len(kind.names) != len(classes):
        raise ValueError(f"{name} has {len(kind.names)} classes, `classes` has {len(classes)} (config/tasks.yaml)")
    for found in data.cast_column(form.image, Image(decode=False)):
        assert isinstance(found, dict)
        image, label = found[form.image], found[form.label]
        if not 0 <= int(label) < len(classes):
            raise ValueError(f"{name}: label {label} of {len(classes)} classes; check `classes` (config/tasks.yaml)")
        yield image["bytes"] or Path(image["path"]).read_bytes(), classes[int(label)]
