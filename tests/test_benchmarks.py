"""The benchmark of a GPU is rehearsed, every line of it at tiny sizes; what it compares with computes the same."""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import waiting
from tiny_vectors import merge, random_models

from fusion.device import CPU
from fusion.vectors import Merged, TaskVectors

SCRIPT = tiny.ROOT / "benchmarks/gpu.py"
SECTIONS = ["agreement", "adaptive", "merging", "matrices", "training", "evaluation", "projection"]


def measure(path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """What the benchmark wrote and printed."""
    command = [sys.executable, str(SCRIPT), "--tiny", "--out", str(path), *arguments]
    env = os.environ | {"FUSION_DEVICE": "cpu", "PYTHONPATH": str(tiny.ROOT)}
    done = waiting.run(command, env=env, cwd=path.parent)
    assert done.returncode == 0, done.stdout
    return json.loads(path.read_text(encoding="utf-8")), done.stdout


def figures(row: dict[str, Any]) -> list[float]:
    return [value["value"] for value in row.values() if isinstance(value, dict)]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's modules can be imported."""
    monkeypatch.syspath_prepend(SCRIPT.parent)


PLAIN = {"tsv_m": {}, "iso_c": {}, "iso_cts": {}, "wudi": {"steps": 5}, "doge": {"steps": 5}}


@pytest.mark.parametrize("algorithm", PLAIN)
def test_a_plain_formulation_makes_what_the_method_makes(algorithm: str, benchmarks: None) -> None:
    import plain  # pyright: ignore[reportMissingImports]

    pretrained, finetuned = random_models({"w": (40, 30)}, 3)
    whole = {"density": 1.0} if algorithm == "doge" else {}  # its last mask is not in the plain formulation
    merged = merge(algorithm, TaskVectors(pretrained, finetuned), **PLAIN[algorithm], **whole)
    assert isinstance(merged, Merged)
    expected = getattr(plain, algorithm)(
        torch.stack([one["w"] - pretrained["w"] for one in finetuned]), **PLAIN[algorithm]
    )
    found = merged.tensors()["w"] - pretrained["w"]
    assert (found - expected).norm() < 1e-3 * expected.norm()


def test_what_cannot_be_measured_is_written_down_and_the_rest_goes_on(benchmarks: None) -> None:
    import gpu  # pyright: ignore[reportMissingImports]
    from on_gpu.setup import Setup  # pyright: ignore[reportMissingImports]

    rows = gpu.measured(Setup(CPU, True, deadline=math.inf), "absent")
    assert rows == [{"work": "absent", "error": "ModuleNotFoundError: No module named 'on_gpu.absent'"}]
    assert gpu.tried(lambda: 1 / 0) == {"error": "ZeroDivisionError: division by zero"}
    rows = gpu.measured(Setup(CPU, True, deadline=time.monotonic()), "evaluation")
    assert rows == [{"work": "evaluation", "skipped": "no time was left"}]


def test_a_gpu_machine_needs_no_package_that_nothing_measured_needs() -> None:
    absent = ("datasets", "pyarrow", "open_clip", "snakemake", "submitit", "nevergrad", "hypothesis")
    code = "import sys; from importlib import import_module\n"
    code += f"sys.modules |= dict.fromkeys({absent})\nfor name in sys.argv[1:]: import_module('on_gpu.' + name)"
    path = os.pathsep.join([str(SCRIPT.parent), str(tiny.ROOT)])
    done = waiting.run([sys.executable, "-c", code, *SECTIONS], env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_every_line_of_the_gpu_benchmark_runs_at_tiny_sizes_on_a_cpu(tmp_path: Path) -> None:
    found, said = measure(tmp_path / "gpu.json", "--seconds", "3600")
    assert list(found["sections"]) == SECTIONS and found["not_run"] == []
    rows = [row for section in found["sections"].values() for row in section]
    assert all(figures(row) and all(map(math.isfinite, figures(row))) for row in rows), said
    assert max(row["relative difference"]["value"] for row in found["sections"]["agreement"]) < 1e-3
    assert "failed: nothing" in said and (found["card"], found["is_tiny"]) == ("cpu", True)


@pytest.mark.slow
def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    found, said = measure(tmp_path / "gpu.json", "--seconds", "0")
    assert found["not_run"] == SECTIONS and f"(--seconds): {'; '.join(SECTIONS)}" in said


@pytest.mark.slow
def test_a_rehearsal_is_no_result() -> None:
    command = [sys.executable, str(SCRIPT), "--tiny", "--out", str(SCRIPT.parent / "results/rehearsal.json")]
    done = waiting.run(command, env=os.environ | {"FUSION_DEVICE": "cpu", "PYTHONPATH": str(tiny.ROOT)})
    assert done.returncode == 2 and "expected another folder" in done.stdout
