"""What jobs took beside what they were reckoned to take: the table, the report, and the demo's figures by stage."""

import json
from pathlib import Path

import pandas as pd
import pytest
import tiny
import yaml

from fusion.estimate import rates
from fusion.estimate.jobs import Jobs
from fusion.estimate.table import by_stage
from fusion.plan import ROWS, read
from fusion.stages.report import modelled
from fusion.tables.modelled import COLUMNS, far_off, make_modelled

HEAD = "s\th:m:s\tmax_rss\tmax_vms\n"


def benchmark(path: Path, seconds: float, mb: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEAD}{seconds}\t0:00:01\t{mb}\t900\n", encoding="utf-8")


def example(folder: Path) -> pd.DataFrame:
    """Two of three fusions were measured, one of them too short for its memory; nothing of fine-tuning was."""
    benchmark(folder / "fused/a/ties.tsv", 12, "800")
    benchmark(folder / "fused/a/tsv_m.tsv", 18, "NA")
    benchmark(folder / "scores/a.tsv", 10, "1000")
    rows = [
        {"stage": "scores", "jobs": 1, "seconds": 13, "mb": 1300},
        {"stage": "fused", "jobs": 3, "seconds": 63, "mb": 500},
    ]
    return make_modelled([one | {"rates": "cpu"} for one in (*rows, rows[0] | {"stage": "finetuned"})], folder)


def test_a_stage_is_compared_by_the_jobs_that_were_measured(tmp_path: Path) -> None:
    table = example(tmp_path)
    assert list(table) == COLUMNS and table["stage"].tolist() == ["fused", "scores"]
    fused = table.iloc[0]
    assert (fused["jobs"], fused["measured_jobs"]) == (3, 2)
    assert fused["modelled_seconds"] == pytest.approx(42) and fused["seconds"] == 30
    assert (fused["modelled_mb"], fused["mb"]) == (500, 800)


def test_a_model_that_is_off_by_more_than_a_third_is_said_to_be(tmp_path: Path) -> None:
    assert far_off(example(tmp_path)) == [
        "fused: modelled 42 s, measured 30",
        "fused: modelled 500 MB of memory, measured 800",
    ]


def test_the_report_shows_both_and_nothing_where_nothing_was_measured(tmp_path: Path) -> None:
    shown = modelled(example(tmp_path))
    assert shown["body"][1] == ["scores", "1 of 1", "13 s", "10 s", "1.3 GB", "1.0 GB"] and shown["rates"] == "cpu"
    empty = make_modelled([], tmp_path / "nothing")
    assert list(empty) == COLUMNS and modelled(empty)["body"] == [] and far_off(empty) == []


def test_stages_of_which_something_is_unknown_are_not_compared() -> None:
    config = yaml.safe_load((ROWS / "config.yaml").read_text())
    whole = by_stage(Jobs(read(config), rates.read("cpu")))
    assert {"data", "heads", "init", "finetuned", "fused", "scores", "similarity"} < {one["stage"] for one in whole}
    lacking = config | {
        "backbones": ["clip_vitb16"],
        "define": {**config["define"], "backbones": {"clip_vitb16": {"size": None}}},
    }
    known = {one["stage"] for one in by_stage(Jobs(read(lacking), rates.read("cpu")))}
    assert known == {"archives", "data", "report"}


def test_the_demo_s_stages_are_modelled_within_a_third_of_what_was_measured() -> None:
    """On the machine that the rates of the cpu are of; `make bench` may have replaced its figures."""
    measured = json.loads((tiny.ROOT / "benchmarks/results/demo.json").read_text(encoding="utf-8"))
    if (measured["machine"]["processor"], measured["machine"]["cores"]) != ("AMD EPYC", 2):
        pytest.skip(f"the demo was measured on {measured['machine']['processor']}")
    plan = read(yaml.safe_load((ROWS / "config.yaml").read_text()))
    found = {one["stage"]: one for one in by_stage(Jobs(plan, rates.read("cpu")))}
    for stage, one in measured["stages"].items():
        assert found[stage]["jobs"] == one["jobs"]
        assert found[stage]["seconds"] == pytest.approx(one["seconds"], rel=1 / 3), stage
