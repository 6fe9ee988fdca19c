"""The presets of the papers, run without a network on random weights of the true architectures: `make presets`.

The hub's cache is written here, with small pictures; one step a mode. The numbers mean nothing, but all code paths,
names, shapes and sizes are those of a real run.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import hub
import pandas as pd
import pytest
import tiny
import yaml

from fusion.plan import ROWS, read

pytestmark = [pytest.mark.slow, pytest.mark.presets]

STEPS = {"steps": 1, "adapt_steps": 1, "rounds": 1, "budget": 2}  # of methods that take some
SHORT = {
    "finetune": {"steps": 1, "batch_size": 2, "warmup_steps": 0},
    "fuse": {"batch_size": 2, "select_examples": 4, "statistics_examples": 1, "loss_examples": 2},
    "evaluate": {"batch_size": 4, "examples": 4},
    "keep_fused": False,
}
# the preset, and what is changed of it to be short
RUNS: dict[str, dict[str, Any]] = {
    "clip_vitb32_ta8": {},
    "clip_vitb16_l_lora7": {
        "define": {"suites": {"vision7": {"tasks": ["eurosat", "svhn"], "subsets": []}}},  # 3,000 fusions otherwise
    },
    "clip_vitb32_unseen": {
        "methods": "every",
        "suites": ["unseen2"],
        "define": {"suites": {"unseen2": {"tasks": ["svhn", "dtd"], "unseen": ["mnist"]}}},
    },
    "clip_vitb32_robustness": {
        "suites": ["robust4", "robust4_spatter"],
        "define": {"suites": {name: {"tasks": ["eurosat", "gtsrb"]} for name in ("robust4", "robust4_spatter")}},
    },
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the hub's cache of all that the presets read."""
    home = tmp_path_factory.mktemp("hub")
    for architecture in ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu"):
        hub.open_clip_model(home, architecture)
    rows = yaml.safe_load((ROWS / "tasks_clip.yaml").read_text(encoding="utf-8"))
    for row in rows.values():
        for source in (one for one in row["sources"] if "hub" in one):
            splits = {split: 3 if part == "train" else 1 for part, split in source["files"].items()}
            hub.data_set(home, source, len(row["classes"]), splits)
    return home


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all presets run, so that they share prepared tasks and models."""
    return tmp_path_factory.mktemp("presets")


def shortened(preset: str, changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The preset with few tasks, steps and examples, every value of a grid but the first left out."""
    own = yaml.safe_load((ROWS / f"presets/{preset}.yaml").read_text(encoding="utf-8"))
    whole = tiny.join(tiny.join(own, SHORT), changes | {"results": str(folder / "results")})
    rows = read({**whole, "methods": []}).rows.methods
    if whole["methods"] == "every":
        whole["methods"] = [name for name in rows if name != "slerp"]
    methods = {}
    for name in whole["methods"]:
        first = rows[name].grid()[0]
        few = {key: min(value, STEPS.get(key.split(".")[-1], value)) for key, value in first.items() if _number(value)}
        methods[name] = {"hyperparameters": first | few}
    return tiny.join(whole, {"define": {"methods": methods}})


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("preset", RUNS)
def test_a_preset_runs_offline_on_its_true_architecture(preset: str, home: Path, folder: Path) -> None:
    config = shortened(preset, RUNS[preset], folder)
    path = folder / f"{preset}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    snakemake = str(Path(sys.executable).with_name("snakemake"))
    where = ["--snakefile", str(tiny.ROOT / "Snakefile"), "--directory", str(folder), "--configfile", str(path)]
    offline = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    with (folder / f"{preset}.log").open("w") as log:
        run = subprocess.run(
            [snakemake, *where], env=tiny.environment() | offline, cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
    assert run.returncode == 0, (folder / f"{preset}.log").read_text()[-5000:]
    scores = pd.read_parquet(folder / "results" / config["run"] / "tables/scores.parquet")
    failed = scores.loc[scores["reason"] != "", ["mode", "space", "method", "reason"]].drop_duplicates()
    print(failed.to_string())
    assert {"pretrained", "individual", *config["methods"]} <= set(scores["method"])
    assert set(scores["mode"]) == {"", *config["modes"]}
