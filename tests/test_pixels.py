"""Pictures prepared once: the same bytes as decoding, shared, resumed, made again where they are missing or stale."""

import shutil
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_corruptions import corrupted_task
from test_vision import write_pictures
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from fusion import record
from fusion.artifacts import write_json
from fusion.backbones import open_backbone
from fusion.checkpoint import save_tensors
from fusion.data.images import Picture
from fusion.data.rows import TaskRow
from fusion.data.tasks import TaskData
from fusion.job import Job, run
from fusion.plan import read
from fusion.provenance import _collect
from fusion.suites import Suite

ROW = {"kind": "dinov2", "options": {"logit_scale": 20.0}}
NETWORK = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def write_model(folder: Path, side: int = 14) -> Path:
    """A tiny DINOv2 that takes pictures of that side."""
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(image_size=14, patch_size=7, **NETWORK)).save_pretrained(folder)
    crop = {"height": side, "width": side}
    BitImageProcessor(size={"shortest_edge": side}, crop_size=crop).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task `one` of pictures and the model `model`, which tests do not change."""
    folder = tmp_path_factory.mktemp("pixels")
    settings = TaskRow(**write_pictures(folder / "pictures/one", 0)).model_dump() | {"name": "one"}
    run(Job("fusion.stages.prepare:prepare_task", {}, {"data": str(folder / "one")}, {"settings": settings}))
    write_model(folder / "model")
    return folder


def job(place: Path, output: Path, split: str = "test", examples: int | None = None, **changes: Any) -> Job:
    given = {"model": str(place / "model"), "data": str(place / "one")} | changes
    settings = {"split": split, "examples": examples, "image_size": None}
    params = {"settings": settings, "code": "this"}
    return Job("fusion.stages.pixels:prepare_pixels", given, {"pixels": str(output)}, params)


def prepare(place: Path, output: Path, *arguments: Any, **changes: Any) -> np.ndarray:
    """What the stage writes."""
    run(job(place, output, *arguments, **changes))
    return np.load(output / "pixels.npy")


@pytest.fixture
def undecodable(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, decoding a picture is an error."""

    def rgb(picture: Picture) -> None:
        raise AssertionError(f"{picture.name} was decoded")

    monkeypatch.setattr(Picture, "rgb", rgb)


def read_all(suite: Suite, backbone: Any) -> list[torch.Tensor]:
    """What scoring predicts of test and validation pictures, and the first batches that adapting sees."""
    found = []
    for split, limit in (("test", None), ("val", 5)):
        (scored,) = suite.scored(backbone, split, limit, 4)
        predictions = scored.predict(backbone, {})
        found += [predictions.labels, predictions.entropies]
    stream = suite.unlabelled(backbone, "val", 3, 0)
    return found + [batch["pixels"] for batch in islice(stream, 5)]


def test_what_scoring_and_adapting_read_is_the_same_to_the_byte_and_nothing_is_decoded(
    place: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    backbone, decoded = open_backbone(place / "model", ROW), TaskData(place / "one")
    for split in ("test", "val"):
        expected = torch.stack([backbone.collate([picture])["pixels"][0] for picture in decoded.inputs(split)])
        found = prepare(place, tmp_path / "a" / split, split)
        assert found.dtype == np.uint8 and np.array_equal(found, expected.numpy())
    save_tensors(tmp_path / "head", {"weight": torch.nn.functional.normalize(torch.randn(2, 16), dim=1)})
    given = {"data": [str(place / "one")], "heads": [str(tmp_path / "head")]}
    params = {"settings": {"tasks": ["one"]}}
    expected = read_all(Suite.of(Job("", given, {}, params)), backbone)
    request.getfixturevalue("undecodable")
    given["pixels"] = [str(tmp_path / "a" / split) for split in ("test", "val")]
    found = read_all(Suite.of(Job("", given, {}, params)), backbone)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_no_more_is_prepared_than_asked_for_and_what_lies_beyond_is_decoded(place: Path, tmp_path: Path) -> None:
    assert len(prepare(place, tmp_path / "a/train", "train", 3)) == 3
    data = TaskData(place / "one", {"train": tmp_path / "a/train/pixels.npy"})
    given = {"data": str(place / "one"), "pixels": [str(tmp_path / "a/train")]}
    assert TaskData.of(Job("", given, {}, {})) == [data]
    inputs, backbone = data.inputs("train"), open_backbone(place / "model", ROW)
    assert [isinstance(one, Picture) for one in inputs[:5]] == [False] * 3 + [True] * 2
    assert len(inputs) == len(TaskData(place / "one").inputs("train"))
    expected = backbone.collate(TaskData(place / "one").inputs("train")[:5])
    assert torch.equal(backbone.collate(inputs[:5])["pixels"], expected["pixels"])


def test_a_corrupted_task_has_test_pixels_of_its_own_and_the_validation_pixels_of_the_clean_one(
    place: Path, tmp_path: Path
) -> None:
    corrupted = corrupted_task(place / "one", tmp_path / "one.contrast-2", "contrast")
    found = prepare(place, tmp_path / "a/test", data=str(corrupted))
    assert not np.array_equal(found, prepare(place, tmp_path / "b/test"))
    prepare(place, tmp_path / "b/val", "val")
    folders = [str(tmp_path / "a/test"), str(tmp_path / "b/val")]
    (task,) = TaskData.of(Job("", {"data": [str(corrupted)], "pixels": folders}, {}, {}))
    assert task.pixels == {
        split: folder / "pixels.npy" for split, folder in zip(("test", "val"), map(Path, folders), strict=True)
    }


KILLED = """
import os, signal, sys
from fusion.job import Job, run
from fusion.stages import pixels

def kill_before_third_record(event, arguments, seen=[]):
    if event == "os.rename" and str(arguments[1]).endswith(".partial.json"):
        seen.append(arguments)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

pixels.BLOCK = 2
sys.addaudithook(kill_before_third_record)
run(Job(*eval(sys.argv[1])))
"""


@pytest.mark.slow
def test_a_job_killed_half_way_goes_on_where_it_was_and_ends_with_the_same_bytes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = prepare(place, tmp_path / "whole/test")
    wanted = job(place, tmp_path / "killed/test")
    arguments = repr((wanted.stage, wanted.input, wanted.output, wanted.params | {"code": "other"}))
    killed = subprocess.run([sys.executable, "-c", KILLED, arguments], check=False)
    assert killed.returncode == -9 and not (tmp_path / "killed/test").exists()
    with open(tmp_path / "killed/test.partial.npy", "ab") as file:
        file.write(b"a block that was cut short")
    wanted.params["code"] = "other"  # or the whole one would be shared
    capsys.readouterr()
    run(wanted)
    assert f"{len(expected)} pictures, 4 of them known" in capsys.readouterr().out
    found = tmp_path / "killed/test/pixels.npy"
    assert found.read_bytes() == (tmp_path / "whole/test/pixels.npy").read_bytes()
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [".test.made.json", "test"]


def test_what_a_killed_job_did_of_other_pictures_is_not_gone_on_with(place: Path, tmp_path: Path) -> None:
    grown = tmp_path / "a/test.partial.npy"
    grown.parent.mkdir()
    grown.write_bytes(b"\0" * 100_000)
    write_json(grown.with_suffix(".json"), {"info": {"task": "one"}, "pictures": 5})
    assert np.array_equal(prepare(place, tmp_path / "a/test"), prepare(place, tmp_path / "other/a/test"))


def test_models_that_take_pictures_alike_share_one_file_and_others_do_not(place: Path, tmp_path: Path) -> None:
    first = prepare(place, tmp_path / "first/test")
    again = prepare(place, tmp_path / "again/test", model=str(write_model(tmp_path / "models/again")))
    other = prepare(place, tmp_path / "other/test", model=str(write_model(tmp_path / "models/other", side=21)))
    fewer = prepare(place, tmp_path / "fewer/test", "test", 3)
    files = [tmp_path / name / "test/pixels.npy" for name in ("first", "again", "other", "fewer")]
    assert [path.samefile(files[0]) for path in files] == [True, True, False, False]
    assert np.array_equal(first, again) and np.array_equal(first[:3], fewer)
    assert (first.shape[1:], other.shape[1:]) == ((3, 14, 14), (3, 21, 21))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (20, 20, 0)),
        ({"evaluate": {"examples": 50}}, (50, 50, 0)),
        ({"fuse": {"select_examples": 30}}, (20, 30, 0)),
        ({"fuse": {"select_examples": None}}, (20, None, 0)),
        ({"evaluate": {"examples": None}}, (None, None, 0)),
        ({"methods": ["adamerging_layer_wise"]}, (20, None, 0)),
        ({"methods": ["adamerging_layer_wise"], "fuse": {"adapted_on": "test"}}, (None, 20, 0)),
        ({"pixels": {"train_examples": 7}}, (20, 20, 7)),
    ],
)
def test_as_many_pictures_are_prepared_as_a_run_reads(
    changes: dict[str, Any], expected: tuple[int | None, ...]
) -> None:
    plan = read(tiny.config(Path("/nowhere"), **{"methods": ["ties"], **changes}))
    assert tuple(plan.pictures(split) for split in ("test", "val", "train")) == expected


def test_a_copy_is_no_part_of_what_a_result_was_made_from(place: Path, tmp_path: Path) -> None:
    prepare(place, tmp_path / "a/test")
    inputs = {"data": str(place / "one"), "pixels": [str(tmp_path / "a/test")]}
    before = record.made_from(Job("", inputs, {}, {}))
    shutil.rmtree(tmp_path / "a")
    assert record.made_from(Job("", inputs, {}, {})) == before == {"data": [record.identity(place / "one")]}


def modules(stage: str) -> set[str]:
    """The modules whose code a stage's results depend on."""
    found: set[str] = set()
    _collect(stage, found)
    return found


def test_what_changes_pixels_changes_what_reads_them_and_they_depend_on_little_else() -> None:
    made = modules("fusion.stages.pixels") - {"fusion.stages.pixels"}
    assert {"fusion.backbones.pixels", "fusion.data.images", "fusion.data.tasks"} <= made
    for reader in ("evaluate", "fuse", "finetune", "statistics", "merged_grams"):
        assert made <= modules(f"fusion.stages.{reader}"), reader
    assert not made & {"fusion.backbones", "fusion.backbones.vision", "fusion.scoring", "fusion.suites"}


def changes_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """What makes of the tiny configuration two picture tasks and two models that take their pictures alike."""
    tasks = {name: write_pictures(folder / "pictures" / name, i) for i, name in enumerate(("one", "two"))}
    backbones = {
        name: ROW | {"sources": [{"folder": str(write_model(folder / name))}], "target_modules": ["q_proj", "v_proj"]}
        for name in ("first", "second")
    }
    define = {"backbones": backbones, "tasks": tasks, "suites": {"pair": {"tasks": list(tasks)}}}
    run = {"backbones": list(backbones), "modes": ["full"], "suites": ["pair"], "multitask": False, "define": define}
    return (
        run | {"methods": ["task_arithmetic"], "evaluate": {"examples": 10}, "fuse": {"select_examples": 5}} | changes
    )


@pytest.mark.slow
def test_a_run_prepares_its_pictures_once_and_again_only_for_what_runs(tmp_path: Path) -> None:
    changes = changes_of(tmp_path)
    done = tiny.snakemake(tmp_path, **changes)
    assert done.returncode == 0, done.output
    assert done.rules["prepare_pixels"] == 8
    assert done.output.count(", 0 of them known") == 4  # what the first model takes is also the second's
    files = sorted((tmp_path / "results/shared/pixels").rglob("*.npy"))
    assert len(files) == 8 and len({path.stat().st_ino for path in files}) == 4
    assert sorted(len(np.load(path, mmap_mode="r")) for path in files) == [6] * 4 + [10] * 4

    def plan(**others: Any) -> Counter[str]:
        found = tiny.snakemake(tmp_path, "-n", **changes | others)
        assert found.returncode == 0, found.output
        return found.rules - Counter(tables=1, report=1, all=1)

    more = {"evaluate": {"examples": None}}
    assert not plan() and not plan(pixels={"train_examples": 3})
    picture = tmp_path / "pictures/one/dark/0.ppm"
    kept = picture.read_bytes()
    picture.write_bytes(kept[:-9] + bytes(9))
    changed = plan()
    assert (changed["prepare_task"], changed["prepare_pixels"], changed["evaluate_fused"]) == (1, 4, 2)
    picture.write_bytes(kept)
    grown = plan(**more)
    assert grown == Counter(prepare_pixels=8, evaluate_pretrained=2, evaluate_individual=4, evaluate_fused=2)
    shutil.rmtree(tmp_path / "results/shared/pixels")
    assert not plan()
    added = plan(methods=["task_arithmetic", "ties"])
    assert added == Counter(prepare_pixels=8, fuse=2, evaluate_fused=2)
    again = tiny.snakemake(tmp_path, **changes | more)
    assert again.returncode == 0, again.output
    assert again.rules["prepare_pixels"] == 8 and again.rules["fuse"] == 0
    assert sorted(len(np.load(path, mmap_mode="r")) for path in files) == [6] * 4 + [16] * 4
    assert not plan(**more)
    assert plan() == Counter(evaluate_pretrained=2, evaluate_individual=4, evaluate_fused=2)  # fewer are there already
