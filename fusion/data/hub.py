"""Data sets of a hub, at a pinned revision; offline where the hub's cache has them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fusion.data.formats import HubFormat


def examples(
    path: str, config: str | None, revision: str | None, split: str, form: HubFormat, classes: Sequence[str]
) -> Iterator[tuple[bytes, str]]:
    """Encoded picture and class of every example of a split; ValueError where the data set is not as the row says."""
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
    for found in data.cast_column(form.image, Image(decode=False)):
        assert isinstance(found, dict)
        image, label = found[form.image], found[form.label]
        if not 0 <= int(label) < len(classes):
            raise ValueError(f"{name}: label {label} of {len(classes)} classes; check `classes` (config/tasks.yaml)")
        yield image["bytes"] or Path(image["path"]).read_bytes(), classes[int(label)]
