"""The package in a notebook."""

import doctest
import pydoc
import re
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

import fusion
from fusion import methods
from fusion.checkpoint import save_tensors
from fusion.pipelines import algorithms
from fusion.rows import MethodRow
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


def test_help_shows_the_signature_and_docstring_of_the_method() -> None:
    for name in algorithms():
        method, written = getattr(methods, name), getattr(import_module(f"fusion.methods.{name}"), name)
        assert method is methods.load(name) and method.__doc__ == written.__doc__
        assert signature(method) == signature(written) and f"{name}(" in pydoc.plain(pydoc.render_doc(method))


@pytest.mark.parametrize("density", [20, 0, float("nan"), "most"])
def test_a_python_call_checks_the_ranges_that_a_row_checks(density: Any) -> None:
    taus = TaskVectors({"w": torch.zeros(2)}, [{"w": torch.ones(2)}])
    with pytest.raises(ValidationError) as row:
        MethodRow(algorithm="dare + ties", hyperparameters={"dare.density": density})
    (said,) = re.findall(r"density: (.*) \(config/methods\.yaml\)", str(row.value))
    for call in (
        lambda: methods.dare(taus, rng=torch.Generator(), density=density),
        lambda: methods.merge("dare + ties", taus, rng=torch.Generator(), values={"dare.density": density}),
    ):
        with pytest.raises(ValueError, match=rf"^dare: density: {re.escape(said)}$"):
            call()


def test_a_choice_is_checked_and_an_unknown_name_is_pythons_error() -> None:
    taus = TaskVectors({"w": torch.zeros(2)}, [{"w": torch.ones(2)}])
    with pytest.raises(ValueError, match=r"ties: scope: got 'model', .*'global' or 'layer'"):
        methods.ties(taus, rng=torch.Generator(), scope="model")
    with pytest.raises(TypeError, match="unexpected keyword argument 'densty'"):
        methods.ties(taus, rng=torch.Generator(), densty=0.2)


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
