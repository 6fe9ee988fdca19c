"""The examples of a task as its source has them, with labels as class indices."""

import codecs
import csv
import difflib
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import pandas as pd

from fusion.data import archives as archive_files
from fusion.data import hub, images
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
            rows = list(hub.examples(data, name, source.format, list(task.classes)))
            names = hub.own_names(data, source.format)
            facts = {"commit": commit, "other_names": hub.other_names(names, list(task.classes))}
        elif isinstance(source.format, ParquetFormat):
            rows, names = _parquet(_content(source, file, archives), source.format, name, list(task.classes))
            facts = {"other_names": hub.other_names(names, list(task.classes))}
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
            return _lines(_decoded(content(file), form.encoding, name), form, name)
        case TableFormat() as form:
            return _table(_decoded(content(file), form.encoding, name), form, name)
        case JsonLinesFormat() as form:
            return _json_lines(_decoded(content(file), "utf-8", name), form, name)
        case PixelsFormat() as form:
            return images.pixels(content(file), form, name)
        case ArraysFormat() as form:
            return images.arrays(
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


def _decoded(content: bytes, encoding: str, name: str) -> str:
    """The text of a file, gzipped or not; the mark with which Excel begins UTF-8 is no part of it."""
    try:
        content = images.unzipped(content)
    except ValueError as error:
        raise ValueError(f"{name}: {error}; fetch or write it again") from error
    try:
        return content.decode("utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise ValueError(f"{name} is not {encoding}: {error}; correct `encoding`") from error


def _lines(content: str, form: LinesFormat, name: str) -> list[tuple[str, str]]:
    rows = []
    for number, line in enumerate(content.split("\n"), start=1):  # splitlines would also split at U+0085
        if not (line := line.rstrip("\r")):
            continue
        match = re.match(form.pattern, line)
        if match is None:
            raise ValueError(f"{name} line {number}: {line[:80]!r} does not match {form.pattern!r}")
        if missing := [group for group in ("label", "text") if match[group] is None]:
            raise ValueError(
                f"{name} line {number}: {line[:80]!r} has no {' and no '.join(missing)} in {form.pattern!r}"
            )
        rows.append((match["text"], match["label"]))
    return rows


def _table(content: str, form: TableFormat, name: str) -> list[tuple[str, str]]:
    quoting = csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=form.sep, quoting=quoting, strict=True)
    rows = []
    try:
        with _fields_up_to(len(content)):
            header = next(reader, [])
            text, label = _column(header, form.text, name), _column(header, form.label, name)
            for below_header, row in enumerate(reader):
                if below_header < form.skip_rows or not row:
                    continue
                if len(row) != len(header):
                    raise ValueError(f"{name} line {reader.line_num}: {len(row)} columns, expected {len(header)}")
                rows.append((row[text], row[label]))
    except csv.Error as error:
        raise ValueError(f"{name} line {reader.line_num}: {error}; check `sep` and `quoted`") from error
    return rows


def _json_lines(content: str, form: JsonLinesFormat, name: str) -> list[tuple[str, str]]:
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(content.split("\n"), start=1):  # splitlines would also split at U+0085
        if not line.strip():
            continue
        try:
            rows[number] = json.loads(line, object_pairs_hook=_each_once)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} line {number}: {line[:80]!r} is no JSON: {error}; expected one object") from error
        if not isinstance(rows[number], dict):
            raise ValueError(f"{name} line {number}: got {line[:80]!r}, expected one JSON object a line")
    keys = dict.fromkeys(key for row in rows.values() for key in row)
    for column in (form.text, form.label):
        _column(list(keys), column, name)
    texts, labels = (
        hub.Cells(column, [row.get(column) for row in rows.values()], list(rows)) for column in (form.text, form.label)
    )
    return hub.labelled(texts, labels, name)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where a key is there twice, of which Python would take the last."""
    found = dict(pairs)
    if twice := sorted({key for key, _ in pairs if len(found) < len(pairs) and [k for k, _ in pairs].count(key) > 1}):
        raise ValueError(f"the keys {twice} are there more than once")
    return found


def _parquet(
    content: bytes, form: ParquetFormat, name: str, classes: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Text and class of every example, and the names that the file itself gives its labels."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pa.BufferReader(content))
        for column in (form.text, form.label):
            _column(file.schema_arrow.names, column, name)
        table = file.read(columns=[form.text, form.label])
        texts, labels = (hub.Cells(column, table[column].to_pylist()) for column in (form.text, form.label))
        described = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    except (pa.ArrowException, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        problem = " ".join(str(error).split())  # it may end with a new line
        raise ValueError(f"{name} is damaged or no Parquet file: {problem}; fetch or write it again") from error
    feature = described.get("info", {}).get("features", {}).get(form.label, {})
    is_named = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    names = feature["names"] if is_named else []
    return hub.labelled(texts, labels, name, hub.class_names(names, name, classes)), names


def _column(header: Sequence[str], column: str, name: str) -> int:
    """Its place in the header; ValueError where it is not there exactly once."""
    if column not in header:
        raise ValueError(f"{name} has no column {[column]}; it has {header} (config/tasks.yaml)")
    if header.count(column) > 1:
        raise ValueError(f"{name} has {header.count(column)} columns {column!r}, expected one: rename the others there")
    return header.index(column)


@contextmanager
def _fields_up_to(length: int) -> Iterator[None]:
    """Lets the csv module read fields of so many characters, at first 131,072; the limit is the whole process'."""
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, length))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _indices(labels: Sequence[str], task: TaskRow, form: Format, name: str) -> list[int]:
    if isinstance(form, TableFormat) and form.min_magnitude is not None:
        return [_sign(label, form.min_magnitude, name) for label in labels]
    index = {images.same_name(label): i for i, label in enumerate(task.classes)}
    if len(index) < len(task.classes):
        raise ValueError(f"classes {list(task.classes)}: two of them differ in their Unicode form alone; rename one")
    found = [images.same_name(label) for label in labels]
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
