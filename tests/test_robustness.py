"""The table and the section of the report that compare suites of the same tasks under corruptions."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from example_scores import add_failure, add_model, first, tables_job
from test_report import Balance, report_of, sentences

from fusion.stages.tables import make_tables


def add_suite(
    folder: Path, suite: str, condition: str, *, ties: int, emr: int | None = None, individual: int = 80
) -> None:
    """One suite of tasks a and b: the pre-trained model at 40 %, the individual ones and the merged ones as given."""
    where: dict[str, Any] = {"suite": suite, "corruption": condition}
    both = {"a": first(40, 100), "b": first(40, 100)}
    add_model(folder, "pretrained", both, mode="", **where)
    for task in ("a", "b"):
        right = {t: first(individual if t == task else 30, 100) for t in ("a", "b")}
        add_model(folder, "individual", right, trained_on=task, **where)
    add_model(folder, "ties", {"a": first(ties - 10, 100), "b": first(ties + 10, 100)}, space="weight", **where)
    if emr is not None:
        add_model(folder, "emr", {"a": first(emr, 100), "b": first(emr, 100)}, space="weight", **where)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tasks a and b clean and under two corruptions; of one, EMR could not be made."""
    add_suite(tmp_path, "pair", "", ties=70, emr=75)
    add_suite(tmp_path, "pair_blur", "motion_blur-2", ties=50, emr=30)
    add_suite(tmp_path, "pair_jpeg", "jpeg_compression-2", ties=60, individual=55)
    add_failure(tmp_path, "emr", "no reason", suite="pair_jpeg", space="weight", corruption="jpeg_compression-2")
    return tmp_path


def tables_of(folder: Path) -> dict[str, pd.DataFrame]:
    make_tables(tables_job(folder))
    return {path.stem: pd.read_parquet(path) for path in (folder / "tables").glob("*.parquet")}


def test_a_row_has_the_average_accuracy_clean_and_under_each_corruption(folder: Path) -> None:
    table = tables_of(folder)["robustness"].set_index("method")
    assert set(table["suite"]) == {"pair"} and set(table["mode"]) == {"full"}
    columns = ["clean", "jpeg_compression-2", "motion_blur-2", "average"]
    assert list(table.columns[-4:]) == columns
    assert table.loc["ties", columns].tolist() == pytest.approx([0.7, 0.6, 0.5, 0.55])
    assert table.loc["individual", columns].tolist() == pytest.approx([0.8, 0.55, 0.8, 0.675])
    assert table.loc["pretrained", columns].tolist() == pytest.approx([0.4] * 4)
    assert table.loc["emr", columns].tolist() == pytest.approx([0.75, np.nan, 0.3, np.nan], nan_ok=True)


def test_corrupted_suites_have_leaderboards_of_their_own(folder: Path) -> None:
    tables = tables_of(folder)
    board = tables["leaderboard"].set_index(["suite", "method"])["accuracy"]
    assert [board[suite, "ties"] for suite in ("pair", "pair_blur", "pair_jpeg")] == pytest.approx([0.7, 0.5, 0.6])
    assert set(tables["per_task"]["suite"]) == {"pair", "pair_blur", "pair_jpeg"}


def test_suites_of_other_tasks_are_left_out(folder: Path) -> None:
    for task in ("c", "d"):
        add_model(folder, "individual", {"c": first(9, 10), "d": first(9, 10)}, suite="other", trained_on=task)
    tables = tables_of(folder)
    assert set(tables["robustness"]["suite"]) == {"pair"} and "other" in set(tables["leaderboard"]["suite"])


def test_without_a_clean_suite_there_is_no_clean_column(tmp_path: Path) -> None:
    add_suite(tmp_path, "pair_blur", "motion_blur-2", ties=50)
    table = tables_of(tmp_path)["robustness"]
    assert "clean" not in table and set(table["suite"]) == {"pair_blur"}
    assert not any("exceeds its val accuracy" in text for text in sentences(tmp_path, warnings=False))


def test_the_table_and_the_section_are_empty_where_nothing_is_corrupted(tmp_path: Path) -> None:
    add_suite(tmp_path, "pair", "", ties=70)
    assert tables_of(tmp_path)["robustness"].empty
    assert 'id="robustness"' not in report_of(tmp_path)[0]


def test_the_report_has_a_section_on_robustness(folder: Path) -> None:
    page, _ = report_of(folder)
    Balance().feed(page)
    section = page[page.index('<section id="robustness">') : page.index('<section id="s1">')]
    for text in ("JPEG compression, severity 2", "Motion blur, severity 2", "Full fine-tuning: pair, tiny"):
        assert text in section
    row = section[section.index("TIES (weight)") :]
    cells = [cell.split("<")[0] for cell in row.split('class="number">')[1:5]]
    assert cells == ["70.0", "60.0", "50.0", "55.0"]


def test_what_is_a_warning_on_clean_pictures_is_a_finding_on_corrupted_ones(folder: Path) -> None:
    assert not any("pair_jpeg" in text for text in sentences(folder, warnings=True))
    said = [text for text in sentences(folder, warnings=False) if "pair_jpeg" in text and "above the" in text]
    assert len(said) == 1 and "TIES" in said[0]  # 60 % under JPEG compression, the individual models 55 %


def test_published_numbers_are_compared_with_clean_accuracies_alone(folder: Path) -> None:
    job = tables_job(folder)
    published = {"paper": "p", "family": "f", "backbone": "tiny", "mode": "full", "space": "weight", "suite": "other"}
    published |= {"method": "pretrained", "task": "a", "n_tasks": 1, "value": 0.4}
    published |= {"setting": "", "chosen_on": "", "protocol": "clip", "source": "s"}
    job.params["published"] = [published]
    make_tables(job)
    assert pd.read_parquet(folder / "tables/published.parquet")["suite"].tolist() == ["pair"]
