"""Adaptive methods see no labels, and no test inputs unless they are told to."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from tiny_stages import TASKS, World, changed
from torch import Tensor

from fusion.artifacts import read_json
from fusion.candidates import merge
from fusion.checkpoint import Checkpoint
from fusion.data.tasks import TaskData
from fusion.job import run
from fusion.spaces import open_space
from fusion.suites import Suite

ADAPTIVE = {
    "adamerging": {"steps": 2},
    "concrete": {"steps": 2, "adapt_steps": 2},
}


class Unlabelled(TaskData):
    """A task whose labels and test inputs must not be touched; it notes which splits are read."""

    read: ClassVar[set[str]] = set()

    def inputs(self, split: str, limit: int | None = None) -> Sequence[Any]:
        if split == "test":
            raise AssertionError("test inputs were read")
        self.read.add(split)
        return super().inputs(split, limit)

    def labels(self, split: str, limit: int | None = None) -> Tensor:
        raise AssertionError("labels were read")


def heads(world: World) -> list[Tensor]:
    return [Checkpoint(world.head(task))["weight"] for task in TASKS]


def adapt(
    world: World, data: Sequence[TaskData], algorithm: str, granularity: str = "layer", **fuse: Any
) -> dict[str, Tensor]:
    """The model that an adaptive method merges, with the entropy on these data as its objective."""
    suite, finetuned = Suite(TASKS, list(data), heads(world)), [world.finetuned("lora", task) for task in TASKS]
    space = open_space("weight", world.model, world.init("lora"), finetuned, world.frozen)
    adapt = {"adapted_on": "val", "batch_size": 4} | fuse
    settings = {"algorithm": algorithm, "adapt": adapt, "labelled": {}, "seed": 0}
    hyper = ADAPTIVE[algorithm] | {"granularity": granularity}
    return merge(space, settings, hyper, world.backbone(), suite, []).tensors()


@pytest.mark.parametrize("granularity", ["task", "layer"])
@pytest.mark.parametrize("algorithm", ADAPTIVE)
def test_adaptation_touches_no_label_and_no_test_input(world: World, algorithm: str, granularity: str) -> None:
    Unlabelled.read.clear()
    adapt(world, [Unlabelled(world.data(task)) for task in TASKS], algorithm, granularity)
    assert Unlabelled.read == {"val"}


@pytest.mark.parametrize("algorithm", ADAPTIVE)
def test_adaptation_on_test_inputs_reads_them_only_when_told(world: World, algorithm: str) -> None:
    data = [Unlabelled(world.data(task)) for task in TASKS]
    with pytest.raises(AssertionError, match="test inputs were read"):
        adapt(world, data, algorithm, adapted_on="test")
    Unlabelled.read.clear()
    adapt(world, data, algorithm, adapted_on="train")
    assert Unlabelled.read == {"train"}


@pytest.mark.parametrize("algorithm", ADAPTIVE)
def test_adaptation_runs_on_data_that_have_no_labels_at_all(world: World, tmp_path: Path, algorithm: str) -> None:
    for task in TASKS:
        plain = load_from_disk(str(world.data(task)))
        assert isinstance(plain, DatasetDict)
        plain.remove_columns("label").save_to_disk(tmp_path / task)
        shutil.copy(world.data(task) / "info.json", tmp_path / task)
    found = adapt(world, [TaskData(tmp_path / task) for task in TASKS], algorithm)
    expected = adapt(world, [TaskData(world.data(task)) for task in TASKS], algorithm)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match="Column 'label' doesn't exist"):
        TaskData(tmp_path / "food").labels("val")


def relabelled(data: Path, splits: Sequence[str]) -> None:
    """Gives every example of some splits the next class."""
    whole = load_from_disk(str(data))
    assert isinstance(whole, DatasetDict)
    for split in splits:
        features = whole[split].features
        labels = [(label + 1) % features["label"].num_classes for label in whole[split]["label"]]
        wrong = Dataset.from_dict({"text": whole[split]["text"][:], "label": labels}, features=features)
        shutil.rmtree(data / split)
        wrong.save_to_disk(str(data / split))


@pytest.mark.parametrize("algorithm", ADAPTIVE)
def test_a_fusion_without_a_grid_is_the_same_whatever_the_labels_are(new_world: World, algorithm: str) -> None:
    job = new_world.fuse_job(new_world.folder / "one", "lora", algorithm, **ADAPTIVE[algorithm])
    run(job)
    before = [TaskData(new_world.data(task)).labels("val") for task in TASKS]
    for task, labels in zip(TASKS, before, strict=True):
        relabelled(new_world.data(task), ["train", "val", "test"])
        assert not torch.equal(TaskData(new_world.data(task)).labels("val"), labels)
    other = new_world.fuse_job(new_world.folder / "other", "lora", algorithm, **ADAPTIVE[algorithm])
    run(other)
    models = [(new_world.folder / name / "model/model.safetensors").read_bytes() for name in ("one", "other")]
    assert models[0] == models[1]


@pytest.mark.parametrize("algorithm", [*ADAPTIVE, "ties"])
def test_a_whole_fusion_reads_nothing_of_the_test_split(new_world: World, algorithm: str) -> None:
    job = new_world.fuse_job(new_world.folder / "fused", "lora", algorithm, **ADAPTIVE.get(algorithm, {}))
    for task in TASKS:
        shutil.rmtree(new_world.data(task) / "test")
    run(job)
    recipe = read_json(new_world.folder / "fused/model/recipe.json")
    assert recipe["adapted_on"] == ("val" if algorithm in ADAPTIVE else "")
    on_test = changed(job, adapt={"adapted_on": "test", "batch_size": 4})
    if algorithm in ADAPTIVE:
        with pytest.raises(FileNotFoundError):
            run(on_test)


def test_a_model_adapted_on_test_inputs_says_so(world: World, tmp_path: Path) -> None:
    job = world.fuse_job(tmp_path, "lora", "adamerging", **ADAPTIVE["adamerging"])
    run(changed(job, adapt={"adapted_on": "test", "batch_size": 4}))
    assert read_json(tmp_path / "model/recipe.json")["adapted_on"] == "test"
