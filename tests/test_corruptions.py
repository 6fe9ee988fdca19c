"""Corrupted test pictures: the benchmark's own functions, the same on every run, and nothing else is corrupted."""

import hashlib
import io
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tiny
from datasets import load_from_disk
from imagecorruptions import corrupt
from PIL import Image
from pydantic import ValidationError
from test_vision import write_pictures

from fusion.artifacts import read_json
from fusion.data.corruptions import corrupted
from fusion.data.images import Picture, encoded
from fusion.data.rows import TaskRow
from fusion.data.tasks import TaskData
from fusion.job import Job, run
from fusion.plan import read
from fusion.rows import Corruption, SuiteRow

KINDS = get_args(Corruption)
FOLDER = Path("/nowhere")


def noise(seed: int, height: int = 40, width: int = 50, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, (height, width, 3), dtype=np.uint8)


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def by_the_library(array: np.ndarray, content: bytes, kind: str, severity: int) -> np.ndarray:
    """What the library makes of a picture from the seed that the encoded picture has."""
    seed = int.from_bytes(hashlib.sha256(content).digest()[:4], "big")
    np.random.seed(seed)
    given = {"seed": seed} if kind == "impulse_noise" else {}
    return corrupt(array, severity=severity, corruption_name=kind, **given)


@pytest.mark.parametrize("severity", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_corrupted_picture_is_the_librarys_from_the_same_seed(kind: str, severity: int) -> None:
    array = noise(1)
    content = encoded(array)
    found = pixels(corrupted(Picture("a", content), kind, severity))
    assert np.array_equal(found, by_the_library(array, content, kind, severity))
    assert found.shape == array.shape and not np.array_equal(found, array)


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_depends_on_the_picture_alone_and_leaves_numpys_generator_as_it_was(kind: str) -> None:
    first, second = (Picture(name, encoded(noise(i))) for i, name in enumerate("ab"))
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    one = [corrupted(picture, kind, 2) for picture in (first, second)]
    assert np.array_equal(np.random.random(3), expected)
    other = [corrupted(picture, kind, 2) for picture in (second, first)]
    assert one == other[::-1]


def test_a_picture_that_is_too_small_for_the_library_is_enlarged() -> None:
    for kind in KINDS:
        assert pixels(corrupted(Picture("a", encoded(noise(1, 8, 20))), kind, 2)).shape == (32, 80, 3)
    grey = Picture("a", encoded(np.full((28, 28), 7, np.uint8)))  # contrast leaves an even picture as it is
    found = pixels(corrupted(grey, "contrast", 2))
    assert found.shape == (32, 32, 3) and set(found.flat) <= {6, 7}  # the library cuts off 6.99…


def test_a_picture_on_which_no_drop_falls_is_as_it_was_and_not_black() -> None:
    pictures = [100 + noise(i, 32, 32, 100) for i in range(200)]
    with np.errstate(invalid="ignore"):
        black = [array for array in pictures if by_the_library(array, encoded(array), "spatter", 1).max() < 100]
    assert black  # the library's, from 0 / 0
    for array in black:
        assert np.array_equal(pixels(corrupted(Picture("a", encoded(array)), "spatter", 1)), array)


def test_a_system_without_what_the_library_needs_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)  # as where its import fails
    with pytest.raises(ImportError, match="libGL is missing, install it in the system, or opencv-python-headless"):
        corrupted(Picture("a", encoded(noise(0))), "contrast", 2)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def prepared(folder: Path) -> Path:
    row = TaskRow(**write_pictures(folder / "pictures" / "one", 0))
    settings = row.model_dump() | {"name": "one"}
    run(Job("fusion.stages.prepare:prepare_task", {}, {"data": str(folder / "one")}, {"settings": settings}))
    (folder / "one/.snakemake_timestamp").touch()
    return folder / "one"


def corrupted_task(source: Path, target: Path, kind: str = "gaussian_noise", severity: int = 2) -> Path:
    settings = {"corruption": kind, "severity": severity}
    job = Job(
        "fusion.stages.corrupt:corrupt_task", {"data": str(source)}, {"data": str(target)}, {"settings": settings}
    )
    run(job)
    return target


def test_a_corrupted_task_differs_in_its_test_pictures_alone(tmp_path: Path) -> None:
    source = prepared(tmp_path)
    before = files(source)
    target = corrupted_task(source, tmp_path / "out")
    assert files(source) == before
    assert not (target / ".snakemake_timestamp").exists()  # Snakemake's own, of the other folder
    clean, found = TaskData(source), TaskData(target)
    for split in ("train", "val"):
        assert list(found.inputs(split)) == [
            p._replace(name=p.name.replace("/one/", "/out/")) for p in clean.inputs(split)
        ]
    for split in ("train", "val", "test"):
        assert found.labels(split).tolist() == clean.labels(split).tolist()
    expected = [corrupted(picture, "gaussian_noise", 2) for picture in clean.inputs("test")]
    assert [picture.content for picture in found.inputs("test")] == expected
    assert load_from_disk(str(target))["test"].features == load_from_disk(str(source))["test"].features


def test_a_corrupted_task_says_what_it_is_and_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    source = prepared(tmp_path)
    first = corrupted_task(source, tmp_path / "first")
    again = corrupted_task(source, tmp_path / "again")
    other = corrupted_task(source, tmp_path / "other", severity=3)
    info, clean = read_json(first / "info.json"), read_json(source / "info.json")
    assert info == clean | {
        "corruption": "gaussian_noise",
        "severity": 2,
        "fingerprint": info["fingerprint"],
    }
    fingerprints = [read_json(folder / "info.json")["fingerprint"] for folder in (source, first, again, other)]
    assert fingerprints[1] == fingerprints[2] and len(set(fingerprints)) == 3
    assert files(first) == files(again)


@pytest.mark.parametrize("severity", [0, 6])
def test_a_severity_out_of_range_is_an_error(severity: int) -> None:
    with pytest.raises(ValidationError, match="severity"):
        SuiteRow(tasks=["cars"], corruption="contrast", severity=severity)


def test_an_unknown_corruption_is_an_error() -> None:
    with pytest.raises(ValidationError, match="Input should be 'motion_blur'"):
        SuiteRow(tasks=["cars"], corruption="fogg")  # type: ignore[arg-type]


def test_a_corrupted_suite_of_texts_is_an_error() -> None:
    suites = {"blurred": {"tasks": list(tiny.TASKS), "corruption": "motion_blur"}}
    message = r"suite 'blurred' has the corruption 'motion_blur', and its task 'colours' is of text; expected tasks of"
    with pytest.raises(ValueError, match=message):
        read(tiny.config(FOLDER, suites=["blurred"], define={"suites": suites}))


def pictures_run(folder: Path, corruptions: list[str]) -> dict[str, Any]:
    """What changes the tiny configuration into one of two picture tasks, clean and under each corruption."""
    tasks = {name: write_pictures(folder / "pictures" / name, i) for i, name in enumerate(("one", "two"))}
    suites = {"pair": {"tasks": list(tasks)}}
    suites |= {f"pair_{kind}": {"tasks": list(tasks), "corruption": kind} for kind in corruptions}
    backbone = {"kind": "clip", "sources": [{"hub": "openai/tiny"}], "target_modules": ["q_proj", "v_proj"]}
    backbone |= {"options": {"logit_scale": 20.0}, "frozen": ["visual_projection.weight"]}
    define = {"backbones": {"pictures": backbone}, "tasks": tasks, "suites": suites}
    return {"backbones": ["pictures"], "modes": ["full"], "suites": list(suites), "define": define}


@pytest.mark.slow
def test_corrupted_suites_share_all_that_sees_no_test_picture(tmp_path: Path) -> None:
    changes = pictures_run(tmp_path, ["motion_blur", "contrast"])
    methods, adapted = ["task_arithmetic", "adamerging_layer_wise"], {"adapted_on": "test"}
    rows = {"define": changes["define"] | {"methods": {"adamerging_layer_wise": adapted}}}
    found = tiny.snakemake(tmp_path, "-n", methods=methods, **changes | rows)
    assert found.returncode == 0, found.output
    rules = found.rules
    assert (rules["prepare_task"], rules["corrupt_task"], rules["make_head"]) == (2, 4, 2)
    assert rules["prepare_pixels"] == 2 + 6  # validation pictures are clean, and test pictures of three kinds
    assert (rules["finetune_task"], rules["finetune_multitask"], rules["similarity"]) == (2, 1, 1)
    fused = sorted((w["method"], w["suite"]) for rule, w in found.jobs if rule == "fuse")
    suites = ["pair", "pair_contrast", "pair_motion_blur"]
    assert fused == [*(("adamerging_layer_wise", suite) for suite in suites), ("task_arithmetic", "pair")]
    scored = [rules[f"evaluate_{name}"] for name in ("pretrained", "individual", "multitask", "fused")]
    assert scored == [3, 6, 3, 6]
    on_val = tiny.snakemake(tmp_path, "-n", methods=methods, **changes)
    assert on_val.rules["fuse"] == 2  # which adapts on clean validation pictures, and so serves all suites
