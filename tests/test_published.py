"""Published numbers beside the run's own: the right ones, marked by how they were chosen."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from example_scores import add_model, first, tables_job

from fusion.job import Job
from fusion.plan import ROWS
from fusion.published import read_published, zero_shot
from fusion.stages.evaluate import _far_from_published
from fusion.stages.report import make_report
from fusion.stages.tables import TABLES, make_tables
from fusion.tables.published import COLUMNS
from fusion.tables.summary import findings

HEADER = "paper,family,backbone,mode,space,suite,method,task,value,setting,chosen_on,protocol,source\n"
AVERAGES = "".join(
    f"arXiv:2,{family},tiny,full,weight,{suite},{method},,{n},{value},,,clip,a note\n"
    for family, suite, method, n, value in (
        ("A", "pair", "ties", 2, 0.45),
        ("B", "pair", "ties", 2, 0.55),
        ("B", "twenty", "pretrained", 20, 0.9),
        ("B", "pair", "pretrained", 3, 0.9),
    )
)
RIGHT = {"colours": first(12, 20), "food": first(16, 20)}


def published(folder: Path, *lines: str, averages: str = "", protocol: str = "clip") -> list[dict[str, Any]]:
    """Published numbers of a file: a row for each 'space,suite,method,task,value,setting,chosen_on'."""
    rows = []
    for line in lines:
        space, suite, rest = line.split(",", 2)
        rows.append(f"arXiv:1,A,tiny,full,{space},{suite},{rest},{protocol},somewhere\n")
    (folder / "published.csv").write_text(HEADER + "".join(rows))
    (folder / "averages.csv").write_text(HEADER.replace("task,", "task,n_tasks,") + averages)
    return read_published(["tiny"], folder)


def compared(folder: Path, *lines: str, averages: str = "", protocol: str = "clip") -> pd.DataFrame:
    """What a run of two models and a pre-trained one finds in those numbers."""
    add_model(folder, "pretrained", RIGHT, mode="", suite="")
    add_model(folder, "ties", RIGHT, space="weight")
    add_model(folder, "ties", {task: ~right for task, right in RIGHT.items()}, space="weight", seed=1)
    job = tables_job(folder)
    job.params["published"] = published(folder, *lines, averages=averages, protocol=protocol)
    make_tables(job)
    return pd.read_parquet(folder / "tables/published.parquet")


def test_a_fused_model_is_compared_in_its_own_suite_and_space(tmp_path: Path) -> None:
    lines = ["weight,pair,ties,food,0.7,scaling=0.3,test", "adapter,pair,ties,food,0.6,,", "weight,all,ties,food,0.5,,"]
    (row,) = compared(tmp_path, *lines).to_dict("records")
    assert row["published"] == 0.7 and row["value"] == pytest.approx((0.8 + 0.2) / 2) and row["seeds"] == 2
    assert row["difference"] == pytest.approx(-0.2)
    assert (row["setting"], row["chosen_on"], row["family"]) == ("scaling=0.3", "test", "A")


def test_a_reference_is_compared_in_any_suite(tmp_path: Path) -> None:
    found = compared(tmp_path, "weight,twenty,pretrained,colours,0.55,,", "weight,pair,pretrained,colours,0.5,,")
    assert sorted(found["published"]) == [0.5, 0.55]
    assert found["value"].tolist() == pytest.approx([0.6, 0.6])


def test_an_average_is_compared_over_the_same_tasks_alone(tmp_path: Path) -> None:
    averages = compared(tmp_path, averages=AVERAGES)
    assert averages["value"].tolist() == pytest.approx([0.5, 0.5])  # over seeds and tasks: (0.6 + 0.8 + 0.4 + 0.2) / 4
    assert averages["difference"].tolist() == pytest.approx([0.05, -0.05])
    assert averages["family"].tolist() == ["A", "B"] and averages["method"].tolist() == ["ties", "ties"]
    assert averages["n_tasks"].tolist() == [2, 2]  # neither the one of twenty tasks nor the one of three


def test_the_page_has_a_table_a_family_and_its_tasks_behind_a_click(tmp_path: Path) -> None:
    add_model(tmp_path, "individual", RIGHT, trained_on="food")
    add_model(tmp_path, "individual", RIGHT, trained_on="colours")
    lines = ["weight,pair,ties,food,0.7,scaling=0.3,test", "weight,pair,ties,colours,0.4,scaling=0.3,test"]
    compared(tmp_path, *lines, averages=AVERAGES)
    settings = {"run": "demo", "title": "A title", "config": {}}
    output = {"report": str(tmp_path / "report.html"), "summary": str(tmp_path / "summary.txt")}
    make_report(Job("", {"tables": str(tmp_path / "tables")}, output, {"settings": settings}))
    page = (tmp_path / "report.html").read_text()
    part = page[page.index('<section id="s1-published">') : page.index('<section id="s1-costs">')]
    tables = [re.sub(r"\s*<[^>]*>\s*", "|", text) for text in part.split("<h3>Family: ")[1:]]
    assert [text[0] for text in tables] == ["A", "B"]
    # ours (0.6 + 0.4 + 0.8 + 0.2) / 4 against (0.7 + 0.4) / 2, and against the averages 0.45 and 0.55
    first, second = (re.sub(r"\|+", "|", text) for text in tables)
    assert "|TIES (weight)|Full fine-tuning|2|50.0|55.0|−5.0|scaling=0.3|on test data|arXiv:1|somewhere|" in first
    assert "|TIES (weight)|Full fine-tuning|2|50.0|45.0|+5.0|–|–|arXiv:2|a note|" in first
    assert "|TIES (weight)|Full fine-tuning|2|50.0|55.0|−5.0|–|–|arXiv:2|a note|" in second and "45.0" not in second
    assert "|Task by task|" in first and "|Food|50.0|70.0|−20.0|" in first and "Task by task" not in second


def test_a_zero_shot_accuracy_far_from_the_published_one_is_a_warning(tmp_path: Path) -> None:
    compared(tmp_path, "weight,pair,pretrained,colours,0.58,,", "weight,pair,pretrained,food,0.6,,")
    tables = {name: pd.read_parquet(tmp_path / f"tables/{name}.parquet") for name in TABLES}
    said = [finding for finding in findings(tables) if "ero-shot" in finding.text]
    assert [finding.warning for finding in said] == [False, True]
    assert "within 20.0 points of 2 published ones" in said[0].text
    assert said[1].text.startswith(
        "tiny: 80.0 % zero-shot on Food, published 60.0 % (somewhere); check its class names"
    )


def test_numbers_of_another_protocol_are_shown_but_take_no_part_in_the_zero_shot_check(tmp_path: Path) -> None:
    (row,) = compared(tmp_path, "weight,pair,pretrained,food,0.1,,", protocol="peta").to_dict("records")
    assert row["published"] == 0.1 and row["protocol"] == "peta"
    tables = {name: pd.read_parquet(tmp_path / f"tables/{name}.parquet") for name in TABLES}
    assert not [finding for finding in findings(tables) if "ero-shot" in finding.text]


def test_a_run_that_nothing_was_published_of_has_an_empty_table(tmp_path: Path) -> None:
    found = compared(tmp_path, "weight,pair,emr,food,0.7,,")
    assert found.empty and list(found.columns) == COLUMNS


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("paper,method\nx,y\n", r"a\.csv line 2: family: got .*Field required"),
        (f"{HEADER}p,f,b,full,weight,s,ties,food,63.2,,,clip,w\n", r"a\.csv line 2: value: got '63.2', .*less than"),
        (
            f"{HEADER}p,f,b,full,weight,s,ties,,0.6,,,clip,w\n",
            r"a\.csv line 2: got task '' and n_tasks 1, expected a task",
        ),
        (f"{HEADER}p,f,b,full,weight,s,ties,food,0.6,,,clip,w,more\n", r"a\.csv line 2: .*keywords must be strings"),
    ],
)
def test_a_file_that_is_not_such_a_table_is_an_error_that_says_where(text: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=error):
        read_published(["b"], tmp_path)


def test_zero_shot_accuracies_are_those_of_the_pretrained_model() -> None:
    row = {"backbone": "b", "method": "pretrained", "task": "food", "protocol": "clip"}
    rows = [row | {"value": 0.6}, row | {"value": 0.7}, row | {"method": "ties", "value": 0.8}]
    rows += [row | {"task": "", "value": 0.9}, row | {"backbone": "c", "value": 0.5}]
    rows += [row | {"protocol": "peta", "value": 0.1}]
    assert zero_shot(rows, "b") == {"food": [0.6, 0.7]}


def test_a_run_without_normalization_is_far_from_what_was_published_of_every_backbone() -> None:
    rows = read_published(["clip_vitb16"])
    known = zero_shot(rows, "clip_vitb16")
    unnormalized = {r["task"]: r["value"] for r in rows if r["method"] == "pretrained" and r["protocol"] == "peta"}
    assert len(unnormalized) == 7 and unnormalized["svhn"] < 0.09
    right = {task: values[0] for task, values in known.items()}
    assert len(right) == 20 and list(_far_from_published(measurements(right), known)) == []
    far = list(_far_from_published(measurements(unnormalized), known))
    assert len(far) == 7 and any(line.startswith("WARNING: 8.9 % zero-shot on svhn, published 52.0 %") for line in far)


def measurements(accuracies: dict[str, float]) -> list[dict[str, Any]]:
    return [{"task": task, "metric": "accuracy", "value": value} for task, value in accuracies.items()]


def test_numbers_of_other_backbones_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{HEADER}p,f,b,full,weight,s,ties,food,0.6,,,clip,w\n")
    assert read_published(["c"], tmp_path) == [] and len(read_published(["b", "c"], tmp_path)) == 1


def test_the_shipped_numbers_are_under_the_names_of_rows() -> None:
    shipped = ["clip_vitb32", "clip_vitb16", "clip_vitl14"]
    frame = pd.DataFrame(read_published(shipped))
    assert len(frame) > 400 and set(frame["backbone"]) == set(shipped)
    text = "".join(path.read_text() for path in ROWS.glob("*.yaml"))
    for column in ("backbone", "task"):
        assert all(f"\n{name}:" in text for name in set(frame[column]) - {""})
    averages = frame[frame["task"] == ""]
    suites = yaml.safe_load((ROWS / "suites.yaml").read_text())
    assert len(averages) > 30 and all(averages["n_tasks"] == [len(suites[s]["tasks"]) for s in averages["suite"]])
    known = yaml.safe_load((ROWS / "methods.yaml").read_text())
    assert set(frame["method"]) <= {*known, "pretrained", "individual", "multitask"}
    best = frame[(frame["method"] == "task_arithmetic") & (frame["backbone"] == "clip_vitb32")]
    assert set(best["chosen_on"]) == {"", "test"}  # the same method at a fixed scaling, and at the best on test data
