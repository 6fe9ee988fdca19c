"""The package in a notebook."""

import doctest
from pathlib import Path
from types import FunctionType

import pytest
import torch
from safetensors.torch import load_file

import fusion
from fusion import methods
from fusion.checkpoint import save_tensors
from fusion.pipelines import algorithms
from fusion.vectors import TaskVectors


def test_the_example_of_the_package_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, values in {"pretrained": [1.0, 1, 1], "dogs": [2.0, 1, 3], "cats": [3.0, 1, 0]}.items():
        save_tensors(f"{name}.safetensors", {"w": torch.tensor(values)})
    assert doctest.testmod(fusion).failed == 0
    assert doctest.testmod(fusion).attempted > 8


def test_every_algorithm_is_a_function_of_the_package() -> None:
    for name in algorithms():
        method = getattr(methods, name)
        assert isinstance(method, FunctionType) and method.__name__ == name and method.__doc__


def test_the_package_offers_what_a_notebook_needs() -> None:
    assert {"Checkpoint", "Merged", "TaskModels", "TaskVectors", "methods"} <= set(dir(fusion))
    assert fusion.TaskVectors is TaskVectors and fusion.methods is methods
    with pytest.raises(AttributeError, match="no attribute 'TaskVector'"):
        getattr(fusion, "TaskVector")  # noqa: B009


def test_a_merged_model_saves_itself_as_one_file(tmp_path: Path) -> None:
    taus = TaskVectors(
        {"w": torch.tensor([1.0]), "n": torch.tensor(1)}, [{"w": torch.tensor([3.0]), "n": torch.tensor(1)}]
    )
    merged = methods.merge("simple_average", taus, rng=torch.Generator()).for_task(0)
    merged.save(tmp_path / "one.safetensors", torch.bfloat16)
    found = load_file(tmp_path / "one.safetensors")
    assert found["w"].dtype is torch.bfloat16 and found["w"].item() == 3.0 and found["n"].dtype is torch.int64
