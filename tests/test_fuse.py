"""Fusing: what is chosen on validation data, what is shared between candidates, and what is reported of a mask."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny_stages import TASKS, World, changed

from fusion.artifacts import read_json
from fusion.checkpoint import Checkpoint
from fusion.job import run
from fusion.rows import MethodRow
from fusion.stages.fuse import flat


def test_diagnostics_become_one_row_a_number() -> None:
    nested = {"density": 0.25, "coefficients": {"w": [0.5, 1.0]}, "accuracy": {"a": 1}}
    assert list(flat(nested)) == [
        {"name": "density", "key": "", "value": 0.25},
        {"name": "coefficients", "key": "w/0", "value": 0.5},
        {"name": "coefficients", "key": "w/1", "value": 1.0},
        {"name": "accuracy", "key": "a", "value": 1.0},
    ]


def fuse(world: World, folder: Path, algorithm: str, grid: list[dict], mode: str = "full") -> pd.DataFrame:
    """The selection table of a fusion in `folder`."""
    whole = [row for hyper in grid for row in MethodRow(algorithm=algorithm, hyperparameters=hyper).grid()]
    run(changed(world.fuse_job(folder, mode, algorithm), grid=whole))
    return pd.read_parquet(folder / "selection.parquet")


def test_the_candidate_with_the_best_mean_validation_accuracy_is_written(world: World, tmp_path: Path) -> None:
    grid = [{"scaling": value} for value in (0.0, 0.5, 5.0)]
    rows = fuse(world, tmp_path / "grid", "task_arithmetic", grid)
    means = rows.groupby("hyperparameters", sort=False)["value"].mean()
    assert len(means) == 3 and means.nunique() > 1
    recipe = read_json(tmp_path / "grid/model/recipe.json")
    assert json.dumps(recipe["hyperparameters"]) == means.idxmax()
    assert set(rows.loc[rows["selected"], "hyperparameters"]) == {means.idxmax()}
    assert recipe["selected_on"] == "val" and recipe["adapted_on"] == ""
    fuse(world, tmp_path / "alone", "task_arithmetic", [recipe["hyperparameters"]])
    assert read_json(tmp_path / "alone/model/recipe.json")["selected_on"] == ""
    one, other = (Checkpoint(tmp_path / name / "model") for name in ("grid", "alone"))
    assert all(one[name].equal(other[name]) for name in other)


def test_a_learned_mask_reports_its_density_and_what_it_leaves_of_each_model(world: World, tmp_path: Path) -> None:
    hyper = {"granularity": "none", "steps": 2, "evaluation_mask": "expectation"}
    fuse(world, tmp_path, "concrete", [hyper], mode="l_lora")
    rows = pd.read_parquet(tmp_path / "diagnostics.parquet")
    assert rows.loc[rows["name"] == "density", "value"].item() == pytest.approx(0.5, abs=0.01)
    assert len(rows[rows["name"] == "density_by_layer"]) == 4  # query and value of two layers
    accuracies = rows[rows["name"] == "masked_individual_accuracy"]
    assert len(accuracies) == 3 and accuracies["value"].between(0, 1).all()


@pytest.mark.parametrize("algorithm", ["adamerging", "concrete"])
def test_an_adaptive_candidate_does_not_depend_on_those_before_it(world: World, tmp_path: Path, algorithm: str) -> None:
    hyper = {"steps": 2, "lr": 0.1} | ({"adapt_steps": 1} if algorithm == "concrete" else {})
    grid = [hyper | {"scaling": value} for value in (0.3, 0.4, 0.5)]
    for name, candidates in {"all": grid, "last": grid[1:]}.items():
        fuse(world, tmp_path / name, algorithm, candidates, mode="lora")
    rows = [pd.read_parquet(tmp_path / name / "selection.parquet") for name in ("all", "last")]
    assert rows[0]["value"][3:].tolist() == rows[1]["value"].tolist()


def test_a_candidate_alone_is_not_scored_and_the_log_says_so(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fusion.stages.fuse.accuracies", None)
    assert fuse(world, tmp_path, "simple_average", [{}]).empty
    assert "one candidate, nothing to choose" in capsys.readouterr().out
    assert read_json(tmp_path / "model/recipe.json")["selected_on"] == ""


def test_adaptation_reports_the_entropy_it_started_from_and_the_one_it_reached(world: World, tmp_path: Path) -> None:
    run(world.fuse_job(tmp_path, "lora", "adamerging", steps=20, lr=0.05))
    found = read_json(tmp_path / "model/recipe.json")["diagnostics"]
    assert 0 < found["entropy_after"] < found["entropy_before"]


def test_a_written_model_is_the_one_that_the_chosen_hyperparameters_make(world: World, tmp_path: Path) -> None:
    grid = [{"scaling": scaling} for scaling in (0.0, 0.5)]
    run(changed(world.fuse_job(tmp_path, "full", "task_arithmetic"), grid=grid))
    chosen = read_json(tmp_path / "model/recipe.json")["hyperparameters"]["scaling"]
    base, found = Checkpoint(world.model), load_file(tmp_path / "model/model.safetensors")
    models = [Checkpoint(world.finetuned("full", task)) for task in TASKS]
    for name, tensor in found.items():
        total = sum((model[name] - base[name] for model in models), torch.zeros_like(base[name]))
        torch.testing.assert_close(tensor, base[name] + chosen * total)
