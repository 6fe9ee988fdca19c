"""The real workflow on a real SLURM: what it makes there has the bytes of a local run."""

import shutil
import subprocess
from pathlib import Path

import pytest
import tiny
from mini_slurm import Slurm
from tiny import ROOT, snakemake
from waiting import Running, wait_for

pytestmark = pytest.mark.slow
SLURM: dict[str, object] = {}
EQUAL = ("per_task", "selection", "similarity", "diagnostics")  # tables without times


def one_core_profile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """profiles/slurm where Snakemake looks for it, with one core a job: more would add up in another order."""
    profile = shutil.copytree(ROOT / "profiles/slurm", home / "snakemake/slurm") / "config.yaml"
    text = profile.read_text()
    assert "cpus_per_task: 4" in text
    profile.write_text(text.replace("cpus_per_task: 4", "cpus_per_task: 1"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("FUSION_DEVICE", "cpu")  # the GPUs of this SLURM are no real ones


def test_a_preempted_fine_tuning_has_the_bytes_of_an_undisturbed_one(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_core_profile(tmp_path / "home", monkeypatch)
    changes = {"finetune": {"steps": 1000, "checkpoint_every": 50}}
    models = {name: tmp_path / name / "results/tiny/finetuned/tiny/full/colours/seed0" for name in ("alone", "cluster")}
    alone = snakemake(tmp_path / "alone", str(models["alone"]), **changes)
    assert alone.returncode == 0, alone.output
    folder = tiny.make(tmp_path / "cluster")
    tiny.write_config(folder, **changes)
    command = tiny.command(folder, str(models["cluster"]), "--profile", "slurm", "--submitit-poll", "1")
    running = Running(command, cwd=folder, env=tiny.environment())
    kept = models["cluster"].with_name("seed0.resume.safetensors")
    wait_for(kept.exists, "a checkpoint", by=running, state=slurm.jobs)
    urgent = ["sbatch", "--partition=high", "--cpus-per-task=16", "--mem=100", "--wrap=sleep 3", "--output=/dev/null"]
    subprocess.run(urgent, check=True, capture_output=True)
    code, output = running.finish()
    assert code == 0, output
    assert any("resuming at step" in log.read_text() for log in folder.rglob("*.log")), "it was preempted"
    weights = [model / "model.safetensors" for model in models.values()]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_tiny_workflow_has_the_tables_of_a_local_run(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"modes": ["l_lora"], "methods": ["task_arithmetic", "concrete_layer_wise"], "multitask": False}
    two, weight = {"tiny": {"tasks": ["colours", "food"]}}, {"l_lora": {"spaces": ["weight"]}}
    changes["define"] = {"suites": two, "modes": weight}
    one_core_profile(tmp_path / "home", monkeypatch)
    tables = {}
    options = ["--profile", "slurm", "--submitit-poll", "2"]
    for name, arguments in {"alone": [], "cluster": options}.items():
        run = snakemake(tmp_path / name, *arguments, **changes)
        assert run.returncode == 0, run.output
        folder = tmp_path / name / "results/tiny/tables"
        tables[name] = {file.name: file.read_bytes() for file in sorted(folder.glob("*.csv")) if file.stem in EQUAL}
    assert tables["alone"].keys() == {f"{name}.csv" for name in EQUAL}
    assert tables["cluster"] == tables["alone"]
    costs = (tmp_path / "cluster/results/tiny/tables/costs.csv").read_text().splitlines()
    column = costs[0].split(",").index("queue_seconds")
    assert all(float(line.split(",")[column]) > 0 for line in costs[1:])
