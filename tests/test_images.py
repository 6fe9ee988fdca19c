"""Tasks of pictures: every format a source can have, what cannot be decoded, and what is written."""

import gzip
import io
import os
import pickle
import re
import shutil
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import hub
import numpy as np
import pandas as pd
import pytest
import waiting
import yaml
from datasets import ClassLabel, Dataset, Features, Image, Value, load_from_disk
from datasets.packaged_modules.parquet.parquet import Parquet
from PIL import Image as PIL
from pydantic import ValidationError

from fusion.data.images import Picture, encoded
from fusion.data.rows import TaskRow
from fusion.data.sources import read
from fusion.data.splits import split as divided
from fusion.data.tasks import TaskData
from fusion.job import Job
from fusion.plan import ROWS
from fusion.stages.prepare import _to_decode, _write, prepare_task

PIXELS = {"kind": "pixels", "height": 2, "width": 3}
ARRAYS = {"kind": "arrays", "images": "data", "labels": "label"}
FOLDERS = {"kind": "image_folder"}
GREY = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)


def row(folder: Path, files: dict[str, str], form: dict[str, Any]) -> TaskRow:
    source = {"folder": str(folder), "files": files, "format": form}
    return TaskRow(modality="image", sources=[source], classes={"0": "a cat", "1": "a dog"}, prompt="{}")  # type: ignore[arg-type]


def table(values: Any) -> bytes:
    return "\n".join(",".join(str(v) for v in line) for line in values).encode()


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def png(image: PIL.Image, form: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def arrays_of(frame: pd.DataFrame) -> list[np.ndarray]:
    return [np.asarray(PIL.open(io.BytesIO(one.read()))) for one in frame["image"]]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_table_of_grey_values_is_read_row_by_row_with_the_class_last(tmp_path: Path, pack: Any) -> None:
    (tmp_path / "a.csv").write_bytes(pack(table([[0, 1, 2, 3, 4, 16, 1], [16, 8, 4, 2, 1, 0, 0]])))
    frame = read(row(tmp_path, {"all": "a.csv"}, PIXELS | {"maximum": 16}), {})["all"]
    assert frame["label"].tolist() == [1, 0]
    # 255 / 16 of the values, to the nearest: 15.9 -> 16, 31.9 -> 32, 47.8 -> 48, 63.75 -> 64
    assert arrays_of(frame)[0].tolist() == [[0, 16, 32], [48, 64, 255]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table([[1, 2, 3, 4, 1]]), r"a.csv has 5 columns; expected 7: 2 × 3 values and a class"),
        (table([[0, 0, 0, 0, 0, 300, 1]]), r"values from 0.0 to 300.0; expected 0 to 255"),
        (table([[0, 0, 0, 0, 0, -1, 1]]), r"values from -1.0"),
        (b"one,two", "is no table of numbers"),
        (table([[0, 0, 0, 0, 0, 0, 7]]), r"labels outside the classes \['0', '1'\]: '7' \(1 rows\)"),
    ],
)
def test_a_table_that_is_not_as_the_row_says_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(row(tmp_path, {"all": "a.csv"}, PIXELS), {})


def pickled(protocol: int) -> Any:
    return lambda array: pickle.dumps(array, protocol)


@pytest.mark.parametrize("write", [idx, *map(pickled, (2, 4, 5))], ids=["idx", "pickle2", "pickle4", "pickle5"])
@pytest.mark.parametrize("shape", [(4, 2, 3), (2, 2, 2, 3)], ids=["grey", "colour"])
def test_arrays_of_pictures_and_classes_are_read(tmp_path: Path, write: Any, shape: tuple[int, ...]) -> None:
    pictures = GREY.reshape(shape)
    (tmp_path / "a-data.gz").write_bytes(gzip.compress(write(pictures), mtime=0))
    (tmp_path / "a-label.gz").write_bytes(write(np.array([1, 0, 1, 1][: len(pictures)], np.uint8)))
    frame = read(row(tmp_path, {"all": "a-{}.gz"}, ARRAYS), {})["all"]
    assert frame["label"].tolist() == [1, 0, 1, 1][: len(pictures)]
    assert np.array_equal(np.stack(arrays_of(frame)), pictures)


class Evil:
    """What a pickle could run."""

    def __reduce__(self) -> Any:
        return (print, ("run",))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(Evil()), "it names builtins.print, and only plain numpy arrays are read"),
        (pickle.dumps(np.array([Evil()], dtype=object)), "it names builtins.print"),
        (pickle.dumps([1, 2]), "holds a list, expected a numpy array"),
        (pickle.dumps(np.zeros((2, 2)))[:40], "holds no pickled numpy array"),
        (idx(GREY)[:-1], r"is cut short: 23 bytes of an array \(4, 2, 3\)"),
        (idx(GREY)[:9], "is cut short: 9 bytes, and an array of rank 3 has a longer header"),
        (gzip.compress(idx(GREY), mtime=0)[:-9], "a gzip file is cut short or damaged"),
        (b"something else", "neither an IDX file of bytes nor a pickled array"),
        (pickle.dumps(np.zeros((4, 2, 3))), "got pictures of float64"),
        (idx(GREY[:3]), r"3 pictures and classes of shape \(4,\)"),
    ],
)
def test_an_array_that_cannot_be_read_is_an_error_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, message: str
) -> None:
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "label").write_bytes(idx(np.zeros(4, np.uint8)))
    with pytest.raises(ValueError, match=message):
        read(row(tmp_path, {"all": "{}"}, ARRAYS), {})
    assert capsys.readouterr().out == ""


def test_a_local_copy_of_a_task_is_read_instead_of_the_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = yaml.safe_load((ROWS / "tasks_clip.yaml").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    assert TaskRow(**shipped["dtd"]).source().hub == "tanganke/dtd"
    (tmp_path / "data/dtd").mkdir(parents=True)
    assert TaskRow(**shipped["dtd"]).source().folder == "data/dtd"


def test_folders_of_picture_files_are_read_by_class_and_other_files_are_not(tmp_path: Path) -> None:
    for split, label in (("train", "0"), ("train", "1"), ("test", "0"), ("test", "1")):
        (tmp_path / split / label).mkdir(parents=True)
        (tmp_path / split / label / "a.png").write_bytes(png(PIL.new("RGB", (2, 2), (int(label), 0, 0))))
    (tmp_path / "train/0/notes.txt").write_text("no picture")
    frames = read(row(tmp_path, {"train": "train", "test": "test"}, FOLDERS), {})
    assert frames["train"]["label"].tolist() == [0, 1]
    assert frames["test"]["label"].tolist() == [0, 1]
    assert frames["train"].attrs["skipped"] == {"not a picture": 1}
    with pytest.raises(ValueError, match=r"no folder .*/trian; the format 'image_folder'"):
        read(row(tmp_path, {"train": "trian", "test": "test"}, FOLDERS), {})


def test_linked_folders_are_followed_and_what_is_skipped_is_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours(tmp_path)
    top = tmp_path / "all"
    (top / "1").rename(tmp_path / "elsewhere")
    (top / "1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/m.png").write_bytes(png(PIL.new("RGB", (2, 2), (99, 0, 0))))
    (top / "0/more").symlink_to(tmp_path / "more")
    (top / "0/up").symlink_to(top)
    (top / "0/gone.png").symlink_to(tmp_path / "nothing")
    (top / "__MACOSX").mkdir()
    for name in ("0/._0.png", ".DS_Store", "0/Thumbs.db", "0/notes.txt", "a.png"):
        (top / name).write_bytes(b"no picture")
    data = prepared(tmp_path / "out", row(tmp_path, {"all": "all"}, FOLDERS))
    assert sum(len(data.labels(split)) for split in ("train", "val", "test")) == 17
    assert data.info["skipped"] == {
        "hidden or system file": 4,
        "beside the class folders": 1,
        "link in a circle": 1,
        "broken link": 1,
        "not a picture": 1,
    }
    assert "pets: skipped 8 files: 4 hidden or system file, " in capsys.readouterr().out


def test_class_folders_that_are_not_the_classes_are_an_error_with_both_lists(tmp_path: Path) -> None:
    colours(tmp_path)
    (tmp_path / "all/1").rename(tmp_path / "all/2")
    expected = (
        "has the class folders ['0', '2'], `classes` has the keys ['0', '1']; "
        "without a class are ['2'], without a folder ['1']"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        read(row(tmp_path, {"all": "all"}, FOLDERS), {})


def test_class_folders_are_found_in_whatever_unicode_form_they_are_named(tmp_path: Path) -> None:
    colours(tmp_path)
    (tmp_path / "all/1").rename(tmp_path / "all/cafe\u0301")
    task = row(tmp_path, {"all": "all"}, FOLDERS).model_copy(update={"classes": {"0": "a", "caf\u00e9": "b"}})
    assert sorted(read(task, {})["all"]["label"]) == [0] * 8 + [1] * 8


def hub_row(path: Path, revision: str | None = None, **form: str) -> TaskRow:
    source = {"hub": str(path), "files": {"train": "train", "test": "test"}, "format": {"kind": "hub", **form}}
    source["revision"] = revision  # type: ignore[assignment]
    return TaskRow(modality="image", sources=[source], classes={"cat": "a cat", "dog": "a dog"}, prompt="{}")  # type: ignore[arg-type]


def test_a_data_set_in_the_hubs_format_is_read_and_a_label_out_of_range_is_an_error(tmp_path: Path) -> None:
    for split, labels in (("train", [0, 1, 1]), ("test", [1, 0])):
        images = [{"bytes": encoded(GREY[i]), "path": None} for i in range(len(labels))]
        features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
        data = Dataset.from_dict({"image": images, "label": labels}, features=features)
        (tmp_path / "data").mkdir(exist_ok=True)
        data.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    frames = read(hub_row(tmp_path), {})
    assert {name: frame["label"].tolist() for name, frame in frames.items()} == {"train": [0, 1, 1], "test": [1, 0]}
    assert np.array_equal(np.stack(arrays_of(frames["train"])), GREY[:3])
    assert frames["train"].attrs["commit"] is None  # it is in a local folder
    with pytest.raises(ValueError, match=r"has no column \['img'\]; it has \['image', 'label'\]"):
        read(hub_row(tmp_path, image="img"), {})


def labelled(folder: Path, labels: list[Any], kind: Any, classes: dict[str, str]) -> TaskRow:
    """The row of a data set of grey pictures in a folder; picture i has the grey value i."""
    images = [{"bytes": encoded(np.full((1, 1), i, np.uint8)), "path": None} for i in range(len(labels))]
    data = Dataset.from_dict({"image": images, "label": labels}, features=Features({"image": Image(), "label": kind}))
    folder.mkdir()
    data.to_parquet(folder / "train.parquet")
    source = {"hub": str(folder), "files": {"all": "train"}, "format": {"kind": "hub"}}
    return TaskRow(modality="image", sources=[source], classes=classes, prompt="{}")  # type: ignore[arg-type]


def classes_of(task: TaskRow) -> list[str]:
    return [list(task.classes)[label] for label in read(task, {})["all"]["label"]]


def test_labels_of_a_hub_are_taken_by_name_where_its_names_are_the_keys_in_another_order(tmp_path: Path) -> None:
    classes = {"warm": "w", "cafe\u0301": "c"}
    number = labelled(tmp_path / "a", [0, 1, 1], ClassLabel(names=["caf\u00e9", "warm"]), classes)
    text = labelled(tmp_path / "b", ["caf\u00e9", "warm", "warm"], Value("string"), classes)
    assert classes_of(number) == classes_of(text) == ["cafe\u0301", "warm", "warm"]


def test_labels_of_a_hub_are_taken_by_their_order_where_no_name_is_a_key_and_that_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = labelled(tmp_path / "a", [0, 1] * 20, ClassLabel(names=["Hund", "Katze"]), {"1": "dog", "0": "cat"})
    assert classes_of(task)[:2] == ["1", "0"]
    prepared(tmp_path / "out", task)
    assert capsys.readouterr().out.count("by their order, '1' is its 'Hund', '0' is its 'Katze'") == 1


@pytest.mark.parametrize("names", [["cold", "hot"], ["Cold", "Warm"], ["cold", "warm", "mild"]])
def test_names_of_a_hub_that_are_the_keys_in_part_are_an_error_with_both_lists(
    tmp_path: Path, names: list[str]
) -> None:
    task = labelled(tmp_path / "a", [0, 1], ClassLabel(names=names), {"warm": "w", "cold": "c"})
    with pytest.raises(ValueError, match=re.escape(f"the classes {names}, `classes` has the keys ['warm', 'cold']")):
        read(task, {})
    strings = labelled(tmp_path / "b", ["warm", "hot"], Value("string"), {"warm": "w", "cold": "c"})
    with pytest.raises(ValueError, match=r"labels outside the classes \['warm', 'cold'\]: 'hot' \(1 rows\)"):
        read(strings, {})


@pytest.mark.parametrize(
    ("labels", "kind", "error"),
    [
        ([0, None], Value("int64"), r"train row 1: column 'label' is empty \(1 row"),
        (["warm", None], Value("string"), r"train row 1: column 'label' is empty"),
        ([0.0, float("nan")], Value("float64"), r"train row 1: column 'label' is empty"),
        ([0.0, 1.7], Value("float64"), r"train row 1: column 'label' has 1\.7, expected a number below 2"),
        ([0, -1], ClassLabel(names=["warm", "cold"]), r"train row 1: column 'label' has -1, expected a number below 2"),
        ([[0], [1]], [Value("int64")], r"train row 0, 1: column 'label' has \[0\], expected a number below 2"),
    ],
)
def test_a_label_of_a_picture_that_is_none_is_named_by_its_row(
    tmp_path: Path, labels: list[Any], kind: Any, error: str
) -> None:
    task = labelled(tmp_path / "a", labels, kind, {"warm": "w", "cold": "c"})
    with pytest.raises(ValueError, match=error):
        read(task, {})


@pytest.mark.parametrize(
    ("pictures", "kind", "error"),
    [
        ([{"bytes": encoded(GREY[0]), "path": None}, None], Image(), r"train row 1: column 'image' is empty"),
        (["no.png", "no.png"], Value("string"), r"picture .*train row 0 \(no.png\) cannot be read: No such file"),
        ([1, 2], Value("int64"), r"column 'image' holds Value\('int64'\), expected pictures; name another column"),
    ],
)
def test_what_is_no_picture_of_a_hub_is_an_error_that_says_where(
    tmp_path: Path, pictures: list[Any], kind: Any, error: str
) -> None:
    task = labelled(tmp_path / "a", [0, 1], Value("int64"), {"warm": "w", "cold": "c"})
    features = Features({"image": kind, "label": Value("int64")})
    Dataset.from_dict({"image": pictures, "label": [0, 1]}, features=features).to_parquet(tmp_path / "a/train.parquet")
    with pytest.raises(ValueError, match=error):
        read(task, {})


def cached(home: Path, commit: str, seed: int) -> None:
    """Writes the data set me/pets at a commit as the library's own code writes it to its cache."""
    files = {}
    for split, count in (("train", 40), ("test", 10)):
        grey = np.random.default_rng(seed).integers(0, 256, (count, 4, 5), dtype=np.uint8)
        images = [{"bytes": encoded(one), "path": None} for one in grey]
        features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
        data = Dataset.from_dict({"image": images, "label": [0, 1] * (count // 2)}, features=features)
        files[split] = str(home / f"{split}.parquet")
        data.to_parquet(files[split])
    builder = Parquet(cache_dir=str(home / "made"), dataset_name="pets", hash=commit, data_files=files)
    builder.download_and_prepare()
    shutil.copytree(builder.cache_dir, home / f"datasets/me___pets/default/0.0.0/{commit}")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the hub's cache is; there is no network."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return tmp_path


def test_the_commit_of_the_hub_that_was_read_is_recorded_and_named_for_pinning(
    offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached(offline, "c" * 40, seed=0)
    data = prepared(offline / "out", hub_row(Path("me/pets")))
    assert data.info["source"]["commit"] == "c" * 40 and "revision" not in data.info["source"]
    assert f"write `revision: {'c' * 40}` into its source of `hub: me/pets`" in capsys.readouterr().out
    pinned = prepared(offline / "pinned", hub_row(Path("me/pets"), revision="c" * 40))
    assert pinned.info["source"]["commit"] == pinned.info["source"]["revision"] == "c" * 40
    assert pinned.info["fingerprint"] == data.info["fingerprint"]
    assert "revision" not in capsys.readouterr().out


def test_a_snapshot_in_the_hubs_cache_is_read_offline_at_the_pinned_commit(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(offline / "hub"))
    monkeypatch.chdir(offline)  # where there is no local copy
    shipped = yaml.safe_load((ROWS / "tasks_clip.yaml").read_text(encoding="utf-8"))["fer2013"]
    source = shipped["sources"][-1]
    hub.data_set(offline, source, 7, {"train": 3, "test": 1})
    frames = read(TaskRow(**shipped), {})
    assert sorted(frames["train"]["label"]) == [label for label in range(7) for _ in range(3)]
    assert sorted(frames["test"]["label"]) == list(range(7))
    assert frames["train"].attrs["commit"] == source["revision"]
    with pytest.raises(ValueError, match=r"cannot load the data set me/cars \(train\): .*HF_HOME"):
        read(hub_row(Path("me/cars")), {})


@pytest.mark.slow
def test_a_snapshot_is_read_where_the_network_is_down(tmp_path: Path) -> None:
    source = {"hub": "me/pets", "format": {}}
    hub.data_set(tmp_path, source, 2, {"train": 3})
    code = "from fusion.data.hub import open_split; data, commit = open_split('me/pets', None, None, 'train'); "
    nowhere = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    online = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    command = [sys.executable, "-c", code + "print(len(data), commit)"]
    done = waiting.run(command, env=online | nowhere)
    assert done.returncode == 0, done.stdout
    (snapshot,) = (tmp_path / "hub").glob("datasets--me--pets/snapshots/*")
    assert done.stdout.split()[-2:] == ["6", snapshot.name]


def test_the_data_sets_of_the_hub_are_pinned() -> None:
    shipped = yaml.safe_load((ROWS / "tasks_clip.yaml").read_text(encoding="utf-8"))
    sources = {name: source for name, row in shipped.items() for source in row["sources"] if "hub" in source}
    assert set(sources) == set(shipped) and len(sources) == 20
    pinned = [name for name, source in sources.items() if re.fullmatch("[0-9a-f]{40}", source.get("revision", ""))]
    assert pinned == list(sources)


def test_another_commit_than_the_pinned_one_is_an_error(offline: Path) -> None:
    cached(offline, "c" * 40, seed=0)
    with pytest.raises(ValueError, match=f"got commit {'c' * 40}, expected `revision` {'d' * 40}. Without a network"):
        read(hub_row(Path("me/pets"), revision="d" * 40), {})
    assert set(read(hub_row(Path("me/pets"), revision="c" * 12), {})) == {"train", "test"}  # a beginning of it


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"hub": "a/b", "format": PIXELS}, "`hub` sources have the format 'hub'"),
        ({"folder": "a", "format": {"kind": "hub"}}, "`hub` sources have the format 'hub'"),
        ({"folder": "a", "revision": "1", "format": PIXELS}, "`revision` and `config` are of `hub` sources alone"),
        ({"folder": "a", "package": "b", "format": PIXELS}, "give exactly one of them"),
        ({"folder": "a", "format": {"kind": "lines", "pattern": "(?P<text>.)(?P<label>.)"}}, "modality 'image'"),
    ],
)
def test_a_source_that_makes_no_sense_is_an_error(source: dict[str, Any], message: str) -> None:
    whole = {"files": {"all": "a"}, **source}
    with pytest.raises(ValidationError, match=message):
        TaskRow(modality="image", sources=[whole], classes={"0": "a", "1": "b"}, prompt="{}")  # type: ignore[arg-type]


def palette() -> PIL.Image:
    image = PIL.new("P", (2, 2), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    return image


def turned() -> PIL.Image:
    """Black, and white on its right: upside down, white is first."""
    image = PIL.new("L", (16, 8), 0)
    image.paste(255, (8, 0, 16, 8))
    return image


def rotated() -> PIL.Exif:
    exif = PIL.Exif()
    exif[0x0112] = 3  # the camera was held upside down
    return exif


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(PIL.new("L", (2, 1), 7)), (7, 7, 7)),
        (png(PIL.new("CMYK", (2, 1), (0, 0, 0, 255)), "jpeg"), (0, 0, 0)),
        (png(PIL.new("RGB", (1, 1), (1, 2, 3))), (1, 2, 3)),
        (png(palette(), transparency=0), (255, 0, 0)),
        (png(PIL.new("RGBA", (2, 2), (9, 8, 7, 0))), (9, 8, 7)),
        (png(palette(), "gif", save_all=True, append_images=[PIL.new("P", (2, 2), 1)]), (255, 0, 0)),
        (png(PIL.fromarray(np.full((1, 1), 30000, np.uint16))), (117, 117, 117)),
        (png(turned(), "jpeg", exif=rotated()), (255, 255, 255)),
    ],
    ids=["grey", "CMYK", "one pixel", "palette", "transparent", "animated", "16 bits", "turned by EXIF"],
)
def test_pictures_of_any_mode_become_rgb(content: bytes, expected: tuple[int, ...]) -> None:
    image = Picture("a", content).rgb()
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "picture train/3 cannot be decoded: cannot identify image file"),
        (png(PIL.new("RGB", (64, 64)))[:60], "picture train/3 cannot be decoded"),
        (b"", "picture train/3 cannot be decoded"),
        (b"P5\n20000 20000\n255\n", r"picture train/3 cannot be decoded: .*(20000 × 20000|400000000) pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "picture train/3 cannot be decoded: cannot identify"),
    ],
    ids=["text", "cut short", "empty", "bomb", "a program"],
)
def test_a_picture_that_cannot_be_decoded_is_an_error_that_names_it(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Picture("train/3", content).rgb()


def twelve_bits(values: list[int]) -> bytes:
    """A TIFF of one row of an even number of grey values, packed in 12 bits each."""
    pairs = zip(values[::2], values[1::2], strict=True)
    strip = b"".join((first << 12 | second).to_bytes(3, "big") for first, second in pairs)
    tags = [
        (256, len(values)),
        (257, 1),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, len(strip)),
    ]
    offset = 8 + len(strip) + len(strip) % 2
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = struct.pack("<2sHI", b"II", 42, offset)
    return header + strip.ljust(offset - 8, b"\0") + struct.pack("<H", len(tags)) + entries + bytes(4)


def tiff(values: list[float], kind: Any, **options: Any) -> bytes:
    return png(PIL.fromarray(np.array([values], kind)), "tiff", **options)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff([0, 0.5, 1], np.float32), [0, 128, 255]),
        (tiff([0, 99.6, 255], np.float32), [0, 100, 255]),
        (tiff([0, 30000, 65535], np.int32), [0, 117, 255]),
        (tiff([0, 30000, 65535], np.uint16), [0, 117, 255]),
        (tiff([0, 2056, 4095], np.uint16, tiffinfo={281: 4095}), [0, 128, 255]),
        (twelve_bits([0, 2056, 4095, 0]), [0, 128, 255, 0]),
    ],
    ids=["floats to 1", "floats to 255", "32 bits", "16 bits", "12 bits in 16", "12 bits"],
)
def test_deep_grey_becomes_8_bits_by_the_value_of_white(content: bytes, expected: list[int]) -> None:
    assert np.asarray(Picture("a", content).rgb())[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff([-0.5, 1], np.float32), "values from -0.5 to 1.0 in mode F; expected 0 to 1 or 0 to 255"),
        (tiff([0, 4000], np.float32), "values from 0.0 to 4000.0 in mode F"),
        (tiff([0, np.nan], np.float32), "values from nan to nan in mode F"),
        (tiff([0, 65536], np.int32), "values from 0 to 65536 in mode I; expected 0 to 65535"),
        (tiff([0, 5000], np.uint16, tiffinfo={281: 4095}), "values from 0 to 5000 in mode I;16; expected 0 to 4095"),
    ],
)
def test_grey_values_of_no_known_white_are_an_error_that_names_picture_and_range(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"picture a.tif cannot be decoded: it has grey {message}"):
        Picture("a.tif", content).rgb()


def prepared(folder: Path, task: TaskRow) -> TaskData:
    settings = task.model_dump() | {"name": "pets", "archives": []}
    prepare_task(Job("", {"archives": []}, {"data": str(folder)}, {"settings": settings}))
    return TaskData(folder)


def test_a_task_of_pictures_is_written_whole_without_leaks_and_read_in_order(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (60, 2, 3), dtype=np.uint8)
    for split, own in (("train", pictures[:41]), ("test", pictures[40:])):  # one picture is in both
        (tmp_path / f"{split}-data").write_bytes(idx(own))
        (tmp_path / f"{split}-label").write_bytes(idx(np.arange(len(own), dtype=np.uint8) % 2))
    task = row(tmp_path, {"train": "train-{}", "test": "test-{}"}, ARRAYS)
    data = prepared(tmp_path / "out", task)
    assert data.info["dropped"]["in_another_split"] == {"train": 1, "test": 0}
    names = {name: [p.content for p in data.inputs(name)] for name in ("train", "val", "test")}
    assert {name: len(found) for name, found in names.items()} == {"train": 36, "val": 4, "test": 20}
    assert len(set().union(*map(set, names.values()))) == 60
    known = {encoded(one): label for one, label in zip(pictures[40:], np.arange(20) % 2, strict=True)}
    assert [known[content] for content in names["test"]] == data.labels("test").tolist()
    assert data.inputs("test", 3)[:] == data.inputs("test")[:3]
    assert data.inputs("test")[2].name == f"{tmp_path}/out/test/2"
    shown = load_from_disk(str(tmp_path / "out/test"))[0]["image"]  # others read the folder with datasets alone
    assert np.array_equal(np.asarray(shown), np.asarray(data.inputs("test")[0].rgb().convert("L")))
    # recorded once; the same on every machine and library version
    assert data.info["fingerprint"] == prepared(tmp_path / "again", task).info["fingerprint"] == FINGERPRINT


FINGERPRINT = "2ea4c86d8add8f9ff5018a75202b99fef1c90bde4d1d048399ebff65c3895546"


def test_all_pictures_that_cannot_be_decoded_are_named_by_their_paths_at_preparation(tmp_path: Path) -> None:
    colours(tmp_path)
    broken = [tmp_path / "all/1" / f"b{i}.png" for i in range(25)]
    broken[0].write_bytes(b"broken")
    task = row(tmp_path, {"all": "all"}, FOLDERS)
    with pytest.raises(ValueError, match=f"task pets: picture {broken[0]} cannot be decoded: cannot identify") as one:
        prepared(tmp_path / "out", task)
    assert "BytesIO" not in str(one.value)
    for i, path in enumerate(broken):
        path.write_bytes(png(PIL.new("RGB", (64, 64), (i, 1, 1)))[: 60 + i])
    with pytest.raises(ValueError, match="task pets: 25 pictures cannot be used:\n") as many:
        prepared(tmp_path / "out", task)
    lines = str(many.value).splitlines()
    listed = {line.split()[1] for line in lines[1:-1]}
    assert len(listed) == 20 and listed < set(map(str, broken)) and lines[-1] == "… and 5 more"
    assert not (tmp_path / "out").exists()


def test_a_picture_of_a_hub_that_cannot_be_decoded_is_named_by_its_row(tmp_path: Path) -> None:
    task = labelled(tmp_path / "a", [0, 1] * 20, ClassLabel(names=["0", "1"]), {"0": "a", "1": "b"})
    images = [{"bytes": b"broken", "path": "a.png"}] + [
        {"bytes": encoded(np.full((1, 1), i)), "path": None} for i in range(39)
    ]
    features = Features({"image": Image(), "label": ClassLabel(names=["0", "1"])})
    data = Dataset.from_dict({"image": images, "label": [0, 1] * 20}, features=features)
    data.to_parquet(tmp_path / "a/train.parquet")
    with pytest.raises(ValueError, match=rf"picture {tmp_path}/a/train row 0 \(a\.png\) cannot be decoded"):
        prepared(tmp_path / "out", task)


def test_all_pictures_are_decoded_or_the_first_of_each_class_where_the_row_says_so(tmp_path: Path) -> None:
    splits, _ = divided(colours(tmp_path), ["0", "1"])
    every = row(tmp_path, {"all": "all"}, FOLDERS)
    first = row(tmp_path, {"all": "all"}, FOLDERS | {"decode": "first"})
    paths = [name for name, _ in _to_decode(splits, every)]
    assert sorted(paths) == sorted(str(path) for path in (tmp_path / "all").glob("*/*"))
    assert [Path(name).parent.name for name, _ in _to_decode(splits, first)] in [
        [*a, *b, *c] for a in ("01", "10") for b in ("01", "10") for c in ("01", "10")
    ]  # of both classes in three splits


def colours(folder: Path) -> dict[str, pd.DataFrame]:
    """16 pictures of two classes as they are read from a folder `all`."""
    for i in range(16):
        (folder / "all" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        (folder / f"all/{i % 2}/{i}.png").write_bytes(png(PIL.new("RGB", (2, 2), (i, 0, 0))))
    return read(row(folder, {"all": "all"}, FOLDERS), {})


def test_a_picture_that_changes_before_it_is_written_stops_the_preparation(tmp_path: Path) -> None:
    frames = colours(tmp_path)
    picture = frames["all"]["image"][3]
    assert picture.content("all/3") == picture.read()
    for path in (tmp_path / "all").rglob("*.png"):
        path.write_bytes(png(PIL.new("RGB", (2, 2), (99, 99, 99))))
    (tmp_path / "out").mkdir()
    splits, _ = divided(frames, ["0", "1"])
    with pytest.raises(
        ValueError, match=rf"picture {tmp_path}/all/\d/\d+.png changed meanwhile: its SHA-256 is \w{{64}}, was \w{{64}}"
    ):
        _write(splits, ["0", "1"], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_pictures_of_a_folder_are_not_held(tmp_path: Path) -> None:
    colours(tmp_path)
    for i, path in enumerate((tmp_path / "all").rglob("*.png")):
        path.write_bytes(bytes([i]) * 1_000_000)
    tracemalloc.start()
    frames = read(row(tmp_path, {"all": "all"}, FOLDERS), {})
    splits, _ = divided(frames, ["0", "1"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, splits.values())) == 16
    assert peak < 4_000_000  # one of them, and what pandas needs
