"""Published numbers beside the run's own: the right ones, marked by how they were chosen."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from example_scores import add_model, first, tables_job

from fusion.config import ROWS
from fusion.published import read_published
from fusion.stages.tables import TABLES, make_tables
from fusion.tables.published import COLUMNS
from fusion.tables.summary import findings

HEADER = "paper,family,backbone,mode,space,suite,method,task,value,setting,chosen_on,source\n"
RIGHT = {"colours": first(12, 20), "food": first(16, 20)}


def published(folder: Path, *lines: str) -> list[dict[str, Any]]:
    """Published numbers of a file: a row for each 'space,suite,method,task,value,setting,chosen_on'."""
    rows = []
    for line in lines:
        space, suite, rest = line.split(",", 2)
        rows.append(f"arXiv:1,A,tiny,full,{space},{suite},{rest},somewhere\n")
    (folder / "published.csv").write_text(HEADER + "".join(rows))
    return read_published(["tiny"], folder)


def compared(folder: Path, *lines: str) -> pd.DataFrame:
    """What a run of two models and a pre-trained one finds in those numbers."""
    add_model(folder, "pretrained", RIGHT, mode="", suite="")
    add_model(folder, "ties", RIGHT, space="weight")
    add_model(folder, "ties", {task: ~right for task, right in RIGHT.items()}, space="weight", seed=1)
    job = tables_job(folder)
    job.params["published"] = published(folder, *lines)
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


def test_a_zero_shot_accuracy_far_from_the_published_one_is_a_warning(tmp_path: Path) -> None:
    compared(tmp_path, "weight,pair,pretrained,colours,0.58,,", "weight,pair,pretrained,food,0.6,,")
    tables = {name: pd.read_parquet(tmp_path / f"tables/{name}.parquet") for name in TABLES}
    said = [finding for finding in findings(tables) if "ero-shot" in finding.text]
    assert [finding.warning for finding in said] == [False, True]
    assert "within 20.0 points of 2 published ones" in said[0].text
    assert said[1].text.startswith(
        "tiny: 80.0 % zero-shot on Food, published 60.0 % (somewhere); check its class names"
    )


def test_a_run_that_nothing_was_published_of_has_an_empty_table(tmp_path: Path) -> None:
    found = compared(tmp_path, "weight,pair,emr,food,0.7,,")
    assert found.empty and list(found.columns) == COLUMNS


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("paper,method\nx,y\n", r"a\.csv line 2: family: got .*Field required"),
        (f"{HEADER}p,f,b,full,weight,s,ties,food,63.2,,,w\n", r"a\.csv line 2: value: got '63.2', .*less than"),
        (f"{HEADER}p,f,b,full,weight,s,ties,food,0.6,,,w,more\n", r"a\.csv line 2: .*keywords must be strings"),
    ],
)
def test_a_file_that_is_not_such_a_table_is_an_error_that_says_where(text: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=error):
        read_published(["b"], tmp_path)


def test_numbers_of_other_backbones_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{HEADER}p,f,b,full,weight,s,ties,food,0.6,,,w\n")
    assert read_published(["c"], tmp_path) == [] and len(read_published(["b", "c"], tmp_path)) == 1


def test_the_shipped_numbers_are_under_the_names_of_rows() -> None:
    shipped = ["clip_vitb32", "clip_vitb16", "clip_vitl14"]
    frame = pd.DataFrame(read_published(shipped))
    assert len(frame) > 400 and set(frame["backbone"]) == set(shipped)
    text = "".join(path.read_text() for path in ROWS.glob("*.yaml"))
    for column in ("backbone", "task"):
        assert all(f"\n{name}:" in text for name in frame[column].unique())
    best = frame[(frame["method"] == "task_arithmetic") & (frame["backbone"] == "clip_vitb32")]
    assert set(best["chosen_on"]) == {"", "test"}  # the same method at a fixed scaling, and at the best on test data
