"""`fusion merge` of folders that hold more than one model: adapters beside models, sub-folders, tied heads."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, error, names, read
from safetensors.torch import save_file

from fusion.cli import main


def combine(base: Path, out: Path, *finetuned: Path, method: str = "simple_average", options: Any = ()) -> int:
    """The exit code of a merge of `finetuned`."""
    each = map(str, finetuned)
    command = ["merge", method, *options, "--pretrained", str(base), "--finetuned", *each, "--out", str(out), "--quiet"]
    return main(command)


@pytest.fixture
def both(models: Path, tmp_path: Path) -> Path:
    """A folder that holds the whole model `a` and the adapter `lora`."""
    shutil.copytree(models / "a", tmp_path / "both")
    return shutil.copytree(models / "lora", tmp_path / "both", dirs_exist_ok=True)


def test_a_whole_model_beside_an_adapter_is_refused_and_both_ways_out_lead_out(
    models: Path, both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert combine(models / "base", tmp_path / "out", both) == 1
    message = error(capsys)
    assert "adapter_config.json" in message and f"give {both / 'model.safetensors'} for the whole model" in message
    assert "move adapter_config.json and adapter_model.safetensors into a folder of their own" in message
    assert main(["show", str(models / "base"), str(both)]) == main(["show", str(both)]) == 1
    assert combine(both, tmp_path / "out", models / "a") == 1

    assert combine(models / "base", tmp_path / "whole", both / "model.safetensors") == 0
    assert_same(read(tmp_path / "whole"), read(models / "a"))
    (tmp_path / "own").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.move(both / name, tmp_path / "own" / name)
    assert combine(models / "base", tmp_path / "apart", both, tmp_path / "own") == 0
    assert combine(models / "base", tmp_path / "again", models / "a", models / "lora") == 0
    assert_same(read(tmp_path / "apart"), read(tmp_path / "again"))


def test_of_a_sharded_model_beside_an_adapter_the_index_is_the_way_out(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = shutil.copytree(models / "b", tmp_path / "both")
    shutil.copytree(models / "lora", both, dirs_exist_ok=True)
    assert combine(models / "base", tmp_path / "out", both) == 1
    assert f"give {both / 'model.safetensors.index.json'} for" in error(capsys)
    assert combine(models / "base", tmp_path / "out", both / "model.safetensors.index.json") == 0


def test_what_a_trainer_leaves_beside_an_adapter_is_no_whole_model(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "lora", tmp_path / "checkpoint-500")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
        (folder / name).write_text("x")
    assert combine(models / "base", tmp_path / "out", folder) == 0


def test_sub_folders_without_weights_are_copied_and_exports_left_out_aloud(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(models / "base", tmp_path / "base")
    for name in ("1_Pooling/config.json", "1_Pooling/more/note.txt", "onnx/model.onnx", ".cache/lock", "1_Pooling/.x"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("{}")
    (base / "1_Pooling/circle").symlink_to(base)
    assert combine(base, tmp_path / "out", models / "a") == 0
    assert names(tmp_path / "out") == names(models / "base") | {"README.md", "1_Pooling"}
    assert names(tmp_path / "out/1_Pooling") == {"config.json", "more"}
    assert names(tmp_path / "out/1_Pooling/more") == {"note.txt"}
    assert capsys.readouterr().err.startswith("left out: onnx (made of the weights of P")


def test_a_sub_folder_with_weights_is_refused_by_name_before_the_merge_and_without_it_merges(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(models / "base", tmp_path / "base")
    (base / "2_Dense").mkdir()
    save_file({"linear.weight": torch.ones(2, 2)}, base / "2_Dense/model.safetensors")
    assert combine(base, tmp_path / "out", models / "a") == 1
    assert "the sub-folder '2_Dense' holds weights (2_Dense/model.safetensors)" in error(capsys)
    assert names(tmp_path) == {"base"}
    assert combine(base, tmp_path / "out.safetensors", models / "a") == 0  # of which nothing but weights is written
    shutil.rmtree(base / "2_Dense")
    assert combine(base, tmp_path / "out", models / "a") == 0
