"""The examples of a task as its source has them, with labels as class indices."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files as package_files
from pathlib import Path

import pandas as pd

from fusion.data import archives as archive_files
from fusion.data import arrays, hub, images, texts
from fusion.data.columns import other_names, same_name
from fusion.data.formats import (
    ArraysFormat,
    FolderFormat,
    Format,
    HubFormat,
    JsonLinesFormat,
    LinesFormat,
    ParquetFormat,
    PixelsFormat,
    TableFormat,
)
from fusion.data.rows import SIGNS, SourceRow, TaskRow

UNLABELLED = -1  # a score too near to zero to have a sign; `split` drops and counts these rows


def read(task: TaskRow, archives: Mapping[str, Path]) -> dict[str, pd.DataFrame]:
    """The files of the task's first available source: {split or `all`: columns text or image, and label (int)}.

    text: str; image: Stored, not held. Frames of a hub have the commit that was read in `attrs["commit"]`, None if that
    cannot be known. Those of a hub or of Parquet have in `attrs["other_names"]` the class names there, if no key of the
    row's is among them. Those of folders have in `attrs["skipped"]` how many files of each kind were not read.
    ValueError if the source, a file, a column or a label is not as the row says.
    """
    source, column = task.source(), task.modality
    frames = {}
    for split, file in source.files.items():
        name, facts = f"{source.place}/{file}", {}
        if isinstance(source.format, HubFormat):
            data, commit = hub.open_split(source.place, source.config, source.revision, file)
            data = hub.spelled(data, name, source.format)
            rows = list(hub.examples(data, name, source.format, list(task.classes)))
            names = hub.own_names(data, source.format)
            facts = {"commit": commit, "other_names": other_names(names, list(task.classes))}
        elif isinstance(source.format, ParquetFormat):
            rows, names = texts.parquet(_content(source, file, archives), source.format, name, list(task.classes))
            facts = {"other_names": other_names(names, list(task.classes))}
        elif isinstance(source.format, FolderFormat):
            rows, skipped = images.in_folders(_folder(source, file), list(task.classes))
            facts = {"skipped": skipped}
        else:
            rows = list(_rows(source, file, archives, name))
        inputs, labels = [found for found, _ in rows], [label for _, label in rows]
        columns = {column: inputs, "label": _indices(labels, task, source.format, name)}
        frames[split] = pd.DataFrame(columns).astype(
            {column: "str" if column == "text" else "object", "label": "int64"}
        )
        frames[split].attrs |= facts
    return frames


def _rows(
    source: SourceRow, file: str, archives: Mapping[str, Path], name: str
) -> Iterable[tuple[str | images.Stored, str]]:
    """Input and class of every example of one file."""

    def content(file: str) -> bytes:
        return _content(source, file, archives)

    match source.format:
        case LinesFormat() as form:
            return texts.lines(texts.decoded(content(file), form.encoding, name), form, name)
        case TableFormat() as form:
            return texts.table(texts.decoded(content(file), form.encoding, name), form, name)
        case JsonLinesFormat() as form:
            return texts.json_lines(texts.decoded(content(file), "utf-8", name), form, name)
        case PixelsFormat() as form:
            return arrays.pixels(content(file), form, name)
        case ArraysFormat() as form:
            return arrays.arrays(
                content(file.replace("{}", form.images)), content(file.replace("{}", form.labels)), name
            )
        case FolderFormat() | HubFormat() | ParquetFormat():
            raise AssertionError(f"{name} is read as a whole")


def _folder(source: SourceRow, file: str) -> Path:
    folder = Path(source.folder or "") / file
    if source.folder is None or not folder.is_dir():
        raise ValueError(f"no folder {folder}; the format 'image_folder' reads a local one (config/tasks.yaml)")
    return folder


def _content(source: SourceRow, file: str, archives: Mapping[str, Path]) -> bytes:
    if source.archive is not None:
        if source.archive not in archives:
            raise ValueError(f"archive {source.archive!r} was not fetched; got {sorted(archives)}")
        return archive_files.read_member(archives[source.archive], file)
    if source.package is not None:
        return _of_package(source.package, file)
    folder = Path(source.folder or "")
    if not (folder / file).is_file():
        there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        near = difflib.get_close_matches(file, there, n=3)
        raise ValueError(f"no file {file!r} in {folder}; the nearest are {near} (config/tasks.yaml)")
    return (folder / file).read_bytes()


def _of_package(package: str, file: str) -> bytes:
    try:
        return package_files(package).joinpath(file).read_bytes()
    except (ModuleNotFoundError, OSError) as error:
        raise ValueError(f"cannot read {file!r} of the Python package {package!r}: {error}") from error


def _indices(labels: Sequence[str], task: TaskRow, form: Format, name: str) -> list[int]:
    if isinstance(form, TableFormat) and form.min_magnitude is not None:
        return [_sign(label, form.min_magnitude, name) for label in labels]
    index = {same_name(label): i for i, label in enumerate(task.classes)}
    if len(index) < len(task.classes):
        raise ValueError(f"classes {list(task.classes)}: two of them differ in their Unicode form alone; rename one")
    found = [same_name(label) for label in labels]
    if outside := [label for label in found if label not in index]:
        counts = ", ".join(f"{label!r} ({outside.count(label)} rows)" for label in sorted(set(outside))[:10])
        raise ValueError(f"{name}: labels outside the classes {list(index)}: {counts} (config/tasks.yaml)")
    return [index[label] for label in found]


def _sign(label: str, min_magnitude: float, name: str) -> int:
    try:
        score = float(label)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{name}: label {label!r} is no score, but min_magnitude asks for one")
    if abs(score) < min_magnitude:
        return UNLABELLED
    return SIGNS.index("positive" if score > 0 else "negative")
