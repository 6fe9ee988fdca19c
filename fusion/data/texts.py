"""Text and label of every example of a file: lines, tables, JSON lines and Parquet."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fusion.data.archives import unzipped
from fusion.data.columns import Cells, class_names, column, labelled, same_name
from fusion.data.formats import JsonLinesFormat, LinesFormat, ParquetFormat, TableFormat


def decoded(content: bytes, encoding: str, name: str) -> str:
    """The text of a file, gzipped or not; the mark with which Excel begins UTF-8 is no part of it."""
    try:
        content = unzipped(content)
    except ValueError as error:
        raise ValueError(f"{name}: {error}; fetch or write it again") from error
    try:
        return content.decode("utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise ValueError(f"{name} is not {encoding}: {error}; correct `encoding`") from error


def lines(content: str, form: LinesFormat, name: str) -> list[tuple[str, str]]:
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


def table(content: str, form: TableFormat, name: str) -> list[tuple[str, str]]:
    quoting = csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=form.sep, quoting=quoting, strict=True)
    rows = []
    try:
        with _fields_up_to(len(content)):
            header = next(reader, [])
            text, label = (header.index(column(header, one, name)) for one in (form.text, form.label))
            for below_header, row in enumerate(reader):
                if below_header < form.skip_rows or not row:
                    continue
                if len(row) != len(header):
                    raise ValueError(f"{name} line {reader.line_num}: {len(row)} columns, expected {len(header)}")
                rows.append((row[text], row[label]))
    except csv.Error as error:
        raise ValueError(f"{name} line {reader.line_num}: {error}; check `sep` and `quoted`") from error
    return rows


def json_lines(content: str, form: JsonLinesFormat, name: str) -> list[tuple[str, str]]:
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
    columns = [same_name(column(list(keys), one, name)) for one in (form.text, form.label)]
    texts, labels = (Cells(one, [row.get(one) for row in rows.values()], list(rows)) for one in columns)
    return labelled(texts, labels, name)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError where a key is there twice, of which Python would take the last."""
    pairs = [(same_name(key), value) for key, value in pairs]
    found = dict(pairs)
    if twice := sorted({key for key, _ in pairs if len(found) < len(pairs) and [k for k, _ in pairs].count(key) > 1}):
        raise ValueError(f"the keys {twice} are there more than once")
    return found


def parquet(
    content: bytes, form: ParquetFormat, name: str, classes: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Text and class of every example, and the names that the file itself gives its labels."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(pa.BufferReader(content))
        text, label = (column(file.schema_arrow.names, one, name) for one in (form.text, form.label))
        read = file.read(columns=[text, label])
        texts, labels = (Cells(one, read[one].to_pylist()) for one in (text, label))
        described = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    except (pa.ArrowException, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        problem = " ".join(str(error).split())  # it may end with a new line
        raise ValueError(f"{name} is damaged or no Parquet file: {problem}; fetch or write it again") from error
    feature = described.get("info", {}).get("features", {}).get(label, {})
    is_named = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    names = feature["names"] if is_named else []
    return labelled(texts, labels, name, class_names(names, name, classes)), names


@contextmanager
def _fields_up_to(length: int) -> Iterator[None]:
    """Lets the csv module read fields of so many characters, at first 131,072; the limit is the whole process'."""
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, length))
    try:
        yield
    finally:
        csv.field_size_limit(before)
