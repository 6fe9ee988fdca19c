"""Fusing: what is chosen on validation data, what is shared between candidates, and what is reported of a mask."""

import json
from pathlib import Path

import pandas as pd
import pytest
from tiny_stages import World, changed

from fusion.artifacts import read_json
from fusion.checkpoint import Checkpoint
from fusion.job import run
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
    run(changed(world.fuse_job(folder, mode, algorithm), grid=grid))
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
