"""The report: it opens offline, shows every row, and its sentences carry the right numbers."""

import json
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from example_scores import add_entropies, add_failure, add_model, add_run, first, tables_job, write

from fusion.job import Job
from fusion.report.boards import described
from fusion.report.sections import method_order
from fusion.stages.report import make_report
from fusion.stages.tables import TABLES, make_tables
from fusion.tables.labels import duration, label, millions, percent, points, size
from fusion.tables.summary import findings

DOCS_FIGURES = str(Path(__file__).parents[1] / "docs" / "figures.py")


def report_of(folder: Path, title: str = "A title", subsets: dict[str, str] | None = None) -> tuple[str, str]:
    """The page and the terminal summary of the files in the folder."""
    make_tables(tables_job(folder, subsets))
    output = {"report": str(folder / "report.html"), "summary": str(folder / "summary.txt")}
    settings = {"run": "demo", "title": title, "config": {"seeds": [0, 1], "tasks": ["a", "b"]}}
    make_report(Job("", {"tables": str(folder / "tables")}, output, {"settings": settings}))
    return (folder / "report.html").read_text(), (folder / "summary.txt").read_text()


def sentences(folder: Path, *, warnings: bool) -> list[str]:
    make_tables(tables_job(folder))
    tables = {name: pd.read_parquet(folder / "tables" / f"{name}.parquet") for name in TABLES}
    return [finding.text for finding in findings(tables) if finding.warning == warnings]


def add_pair(folder: Path, mode: str = "full", **merged: np.ndarray) -> None:
    """Pre-trained 40 %, individual models 80 % on their own task of 100 examples, and the given merged models."""
    add_model(folder, "pretrained", {"a": first(40, 100), "b": first(40, 100)}, mode="", entropy=1.5)
    for task in ("a", "b"):
        right = {t: first(80 if t == task else 30, 100) for t in ("a", "b")}
        add_model(folder, "individual", right, mode=mode, trained_on=task, entropy=0.2)
    for method, right in merged.items():
        add_model(folder, method, {"a": right, "b": right}, mode=mode, space="weight")


class Balance(HTMLParser):
    """Asserts that every element that needs to be closed is closed in order."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of plausible size with its tables and its report."""
    folder = tmp_path_factory.mktemp("run")
    add_run(folder)
    report_of(folder, "Text tasks <&> one model")
    return folder


@pytest.fixture
def page(run: Path) -> str:
    return (run / "report.html").read_text()


@pytest.mark.slow
def test_the_page_is_whole_and_fetches_nothing(page: str) -> None:
    parser = Balance()
    parser.feed(page)
    assert parser.open == [] and parser.addresses
    assert all(address.startswith(("#", "data:")) for address in parser.addresses)
    assert not re.search(r"<(script|link|iframe)|@import|url\((?!#)", page)


@pytest.mark.slow
def test_every_link_of_the_page_leads_somewhere(page: str) -> None:
    targets = set(re.findall(r'<section id="([^"]+)"', page))
    assert set(re.findall(r'<a href="#([^"]+)"', page)) == targets


@pytest.mark.slow
def test_figures_are_valid_svg_that_take_the_colour_of_the_text(page: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(figures) == 3 + 2  # a heat map a mode, curves, similarities
    for figure in figures:
        ET.fromstring(figure)
        assert "currentColor" in figure and 'aria-label="' in figure and "<metadata" not in figure
    assert "#0a0b0c" not in page


@pytest.mark.slow
def test_the_page_shows_every_method_mode_task_and_reason(page: str) -> None:
    for text in ("Full fine-tuning", "L-LoRA", "Task arithmetic", "TIES", "TSV-M", "AdaMerging", "SMS spam", "TREC"):
        assert text in page
    assert "could not run: needs two-dimensional tensors" in page
    assert "hash-trec" in page and "0.1.0" in page and "seeds:" in page


@pytest.mark.slow
def test_text_from_outside_is_escaped(page: str) -> None:
    assert "Text tasks &lt;&amp;&gt; one model" in page and "<&>" not in page


@pytest.mark.slow
def test_the_report_needs_no_grid_no_similarity_and_only_one_mode(tmp_path: Path) -> None:
    add_pair(tmp_path, ties=first(60, 100))
    page, text = report_of(tmp_path)
    assert "Selection on validation" not in page and "Similarity of task" not in page
    assert "TIES" in text and "Concrete" not in text


@pytest.mark.slow
def test_a_method_without_a_grid_has_no_curve(tmp_path: Path) -> None:
    add_pair(tmp_path, ties=first(60, 100))
    keys = {"backbone": "tiny", "mode": "full", "space": "weight", "suite": "pair", "method": "ties", "seed": 0}
    row = {"hyperparameters": '{"scaling": 1.0}', "scaling": 1.0, "task": "a", "split": "val", "metric": "accuracy"}
    row["value"] = 0.6
    write(tmp_path / "selection" / "ties.parquet", pd.DataFrame([keys | row | {"n": 10, "selected": True}]))
    assert "Selection on validation" not in report_of(tmp_path)[0]


@pytest.mark.slow
def test_a_suite_in_which_no_fusion_could_run_still_has_its_report(tmp_path: Path) -> None:
    add_pair(tmp_path)
    add_failure(tmp_path, "ties", "out of memory", space="weight")
    page, text = report_of(tmp_path)
    assert "could not run: out of memory" in page and "could not run: out of memory" in text


def test_methods_that_could_not_run_are_named_together_below_the_ranking_of_their_class(tmp_path: Path) -> None:
    add_pair(tmp_path, ties=first(60, 100))
    for method, space in (("tsv_m", "weight"), ("tsv_m", "adapter"), ("task_arithmetic", "weight")):
        add_failure(tmp_path, method, "needs <matrices>", space=space)
    add_failure(tmp_path, "emr", "needs two tasks", space="weight")
    page, text = report_of(tmp_path)
    (said,) = re.findall(r"<div>([^<]*) could not run: needs &lt;matrices&gt;</div>", page)
    assert said == "Task arithmetic (weight), TSV-M (adapter, weight)"
    assert page.index("TIES</td>") < page.index(said) < page.index("EMR (weight) could not run: needs two tasks")
    assert "    Task arithmetic (weight), TSV-M (adapter, weight) could not run: needs <matrices>\n" in text
    assert all(len(line) <= 100 for line in text.splitlines() if "could not run" in line)


def test_a_method_that_ran_with_some_seeds_is_ranked_and_says_what_is_missing(tmp_path: Path) -> None:
    add_pair(tmp_path, ties=first(60, 100))
    add_failure(tmp_path, "ties", "out of memory", space="weight", seed=1)
    page, text = report_of(tmp_path)
    assert "TIES (weight, some seeds) could not run: out of memory" in page
    assert "<b>60.0</b>" in page and re.search(r"TIES +weight +60\.0", text)


def test_models_that_store_more_than_one_are_a_class_with_what_they_store(tmp_path: Path) -> None:
    add_pair(tmp_path, ties=first(60, 100))
    assert report_of(tmp_path)[0].count(">Extra parameters</th>") == 1  # in the costs alone
    add_model(tmp_path, "emr", {t: first(75, 100) for t in "ab"}, space="weight", extra_parameters=12_340_000)
    page, text = report_of(tmp_path)
    board = page[page.index('<table class="board">') : page.index("</table>")]
    assert "Keeps more than one model&#39;s parameters" in board and ">12.3 M</td>" in board
    assert re.search(r"EMR +weight +75\.0 .*\+ 12\.3 M$", text, re.MULTILINE)
    assert "the best data-free method on test is TIES" in text and "the best multi-model method on test is EMR" in text


def test_the_multitask_model_stands_beside_the_other_references(tmp_path: Path) -> None:
    add_pair(tmp_path, ties=first(60, 100))
    assert "The multi-task model" not in report_of(tmp_path)[0]
    add_model(tmp_path, "multitask", {t: first(78, 100) for t in "ab"}, finetune_seconds=200.0)
    page, text = report_of(tmp_path)
    assert "The multi-task model, for reference, was" in page
    reference = page[page.index("Reference models, not fused") : page.index("Data-free: from")]
    assert "Multi-task" in reference and "<b>78.0</b>" in reference
    assert page.count("Multi-task") >= 3 and ">3 min 20 s<" in page  # leaderboard, heat map, costs
    assert "one model fine-tuned on all tasks at once reaches 78.0 %, −2.0 points against the individual models" in text
    assert "the best reference" not in text and "No warnings" in text


def test_warning_when_the_multitask_model_does_not_beat_the_pretrained_one(tmp_path: Path) -> None:
    add_pair(tmp_path, ties=first(60, 100))
    add_model(tmp_path, "multitask", {t: first(35, 100) for t in "ab"})
    (warning,) = sentences(tmp_path, warnings=True)
    assert "the multi-task model (35.0 %) does not beat the pre-trained model (40.0 %)" in warning


@pytest.mark.slow
def test_two_suites_are_two_parts_of_the_page(tmp_path: Path) -> None:
    add_pair(tmp_path, ties=first(60, 100))
    add_model(tmp_path, "pretrained", {"a": first(40, 100)}, mode="", suite="single")
    add_model(tmp_path, "tsv_m", {"a": first(50, 100)}, space="weight", suite="single")
    page, text = report_of(tmp_path)
    assert "Leaderboard: pair, tiny" in page and "Leaderboard: single, tiny" in page
    assert "tiny, pair: Full fine-tuning: individual models reach" in text


@pytest.mark.slow
def test_the_same_tables_make_the_same_bytes(tmp_path: Path) -> None:
    add_pair(tmp_path, ties=first(60, 100))
    assert report_of(tmp_path) == report_of(tmp_path)


def test_summary_prints_the_leaderboard_in_aligned_columns(tmp_path: Path) -> None:
    add_pair(tmp_path, ties=first(60, 100))
    lines = report_of(tmp_path)[1].splitlines()
    rows = [line for line in lines if "100.0" in line or "75.0" in line]
    assert [line.split()[0] for line in rows] == ["Individual", "TIES"]
    assert len({len(line) for line in rows}) == 1
    assert rows[1].split()[1:3] == ["weight", "60.0"]


def test_summary_compares_individual_merged_and_pretrained_models(tmp_path: Path) -> None:
    add_pair(tmp_path, task_arithmetic=first(60, 100), ties=first(35, 100), adamerging=first(70, 100))
    text = " ".join(sentences(tmp_path, warnings=False))
    assert "individual models reach 80.0 % on their own tasks, the pre-trained model 40.0 % (+40.0 points)" in text
    assert "fine-tuning helps on 2 of 2 tasks" in text
    assert "the best data-free method on test is Task arithmetic (weight space) with 60.0 %" in text
    assert "+20.0 points against the pre-trained model, −20.0 against the individual models" in text
    assert "the best unlabelled method on test is AdaMerging (weight space) with 70.0 %" in text
    assert "1 of 3 fused models do not beat the pre-trained model on average" in text
    assert "not scored on val" in text
    assert sentences(tmp_path, warnings=True) == []


def test_summary_compares_lora_with_l_lora_over_the_methods_both_have(tmp_path: Path) -> None:
    add_pair(tmp_path, "lora", task_arithmetic=first(50, 100), ties=first(60, 100), tsv_m=first(99, 100))
    add_pair(tmp_path, "l_lora", task_arithmetic=first(58, 100), ties=first(62, 100))
    text = " ".join(sentences(tmp_path, warnings=False))
    assert "merged in weight space: on average over 2 methods 60.0 % against 55.0 % (+5.0 points" in text
    assert "under task arithmetic 58.0 % against 50.0 % (+8.0 points, normalized 72.5 % against 62.5 %)" in text


def test_warning_when_an_individual_model_does_not_beat_the_pretrained_one(tmp_path: Path) -> None:
    add_pair(tmp_path, ties=first(41, 100))
    add_model(tmp_path, "individual", {"a": first(40, 100), "b": first(40, 100)}, trained_on="a")
    expected = "individual model of A does not beat the pre-trained model on its own task (+0.0 points)"
    assert any(expected in text for text in sentences(tmp_path, warnings=True))


def test_warning_when_a_merged_model_is_above_its_individual_models(tmp_path: Path) -> None:
    add_pair(tmp_path, ties=first(81, 100), tsv_m=first(79, 100))
    (warning,) = sentences(tmp_path, warnings=True)
    assert "TIES (weight space) (81.0 %) is above the individual models (80.0 %)" in warning


def test_summary_says_entropy_before_and_after_adaptation_as_the_mean_over_seeds(tmp_path: Path) -> None:
    add_pair(tmp_path, ties=first(50, 100), adamerging=first(60, 100), concrete_task_arithmetic=first(55, 100))
    add_entropies(tmp_path, "adamerging", [(0.80, 0.62), (0.82, 0.58)])
    add_entropies(tmp_path, "concrete_task_arithmetic", [(0.9, 0.7)])
    add_entropies(tmp_path, "ties", [(0.1, 0.2)])  # adapts to nothing
    start = "Full fine-tuning (weight space): entropy on validation inputs before and after adaptation: "
    (text,) = [text for text in sentences(tmp_path, warnings=False) if text.startswith(start)]
    assert text == start + "AdaMerging 0.810 → 0.600, Concrete task arithmetic 0.900 → 0.700 (nats)."
    assert sentences(tmp_path, warnings=True) == []


def test_summary_says_entropies_per_mode_and_space(tmp_path: Path) -> None:
    for mode, space in (("lora", "weight"), ("lora", "adapter"), ("full", "weight")):
        add_model(tmp_path, "adamerging", {"a": first(6, 10)}, mode=mode, space=space)
        add_entropies(tmp_path, "adamerging", [(0.8, 0.6)], mode=mode, space=space)
    found = [text for text in sentences(tmp_path, warnings=False) if "entropy" in text]
    places = [text.split(":")[0] for text in found]
    assert places == ["Full fine-tuning (weight space)", "LoRA (weight space)", "LoRA (adapter space)"]


@pytest.mark.parametrize("after", [0.5, 0.6, float("nan")])
def test_warning_when_adaptation_did_not_lower_the_entropy(tmp_path: Path, after: float) -> None:
    add_pair(tmp_path, adamerging=first(60, 100))
    add_entropies(tmp_path, "adamerging", [(0.5, after)])
    (warning,) = sentences(tmp_path, warnings=True)
    assert f"adaptation did not lower the entropy: AdaMerging 0.500 → {after:.3f} (nats)" in warning


def test_nothing_is_said_of_entropy_without_rows_about_it(tmp_path: Path) -> None:
    add_pair(tmp_path, adamerging=first(60, 100), task_arithmetic=first(60, 100))
    page, text = report_of(tmp_path)
    assert "before and after adaptation" not in page + text
    assert "No warnings" in page and "than task arithmetic" not in page


@pytest.mark.parametrize(("on_val", "warned"), [(78, False), (55, True)])
def test_warning_when_test_accuracy_is_implausibly_above_val(tmp_path: Path, on_val: int, warned: bool) -> None:
    add_pair(tmp_path, ties=first(60, 100))
    path = tmp_path / "scores" / "full-pair-individual-seed0-a.parquet"
    scores = pd.read_parquet(path)
    on_a = (scores["metric"] == "accuracy") & (scores["task"] == "a")
    write(path, pd.concat([scores, scores[on_a].assign(split="val", value=on_val / 100)]))
    warnings = sentences(tmp_path, warnings=True)
    assert bool(warnings) == warned
    if warned:  # .80 and .55 of 100: .25 / sqrt(.675 × .325 × .02) = 3.77
        assert "80.0 % on test, 55.0 % on val (z = 3.8); was it trained on test data?" in warnings[0]
    text = " ".join(sentences(tmp_path, warnings=False))
    assert f"by more than {3.8 if warned else 0.3} standard errors (1 models checked)" in text


def test_method_order_is_by_class_and_then_by_mean_accuracy() -> None:
    board = pd.DataFrame(
        [
            ("unlabelled", "best", 0.9),
            ("data-free", "low", 0.5),
            ("data-free", "high", 0.6),
            ("data-free", "failed", np.nan),
            ("reference", "pretrained", 0.1),
        ],
        columns=["method_class", "method", "accuracy"],
    )
    assert method_order(board) == ["pretrained", "high", "low", "failed", "best"]


def test_hyperparameters_are_said_in_words_and_seeds_that_differ_are_both_said() -> None:
    assert described('{"density": 0.2, "scaling": 1.0}') == ["density 0.2", "scaling 1.0"]
    by_seed = '{"seed 0": {"k": 2, "scaling": 0.3}, "seed 1": {"k": 2, "scaling": 0.4}}'
    assert described(by_seed) == ["k 2", "scaling 0.3 / 0.4"]
    assert described("{}") == described("") == []


def test_more_than_four_settings_are_folded_away(tmp_path: Path) -> None:
    add_pair(tmp_path)
    for method, count in (("ties", 4), ("adamerging", 11)):
        values = json.dumps({f"option_{i}": i for i in range(count)})
        add_model(tmp_path, method, {"a": first(5, 10)}, space="weight", hyperparameters=values, suite="single")
    page = report_of(tmp_path)[0]
    folded = re.findall(r"<details><summary>(.*?)</summary>(.*?)</details>", page)
    assert folded == [("11 settings", ", ".join(f"option {i} {i}" for i in range(11)))]
    assert '<td class="settings">option 0 0, option 1 1, option 2 2, option 3 3</td>' in page


@pytest.mark.slow
def test_the_page_says_what_its_fusion_times_leave_out(page: str) -> None:
    assert "merging alone; the search of a grid with its scoring is in tables/costs" in page


@pytest.mark.slow
def test_readme_figures_are_readable_on_any_page(run: Path, tmp_path: Path) -> None:
    runpy.run_path(DOCS_FIGURES)["write_pages"](run / "tables", tmp_path / "demo")
    figures = {path.name: path.read_text() for path in (tmp_path / "demo").glob("*.svg")}
    assert set(figures) == {*(f"heat_map_{mode}.svg" for mode in ("full", "lora", "l_lora")), "selection.svg"}
    for figure in figures.values():
        background = ET.fromstring(figure)[0]
        assert background.tag.endswith("rect") and background.get("fill") == "#ffffff"
        assert "currentColor" not in figure
    lines = (tmp_path / "demo" / "leaderboard.md").read_text().splitlines()
    columns = ["mode", "space", "class", "method", "accuracy, %", "normalized, %", "extra parameters", "merging"]
    assert lines[0] == f"| {' | '.join(columns)} |"
    assert len(lines) == 2 + len(pd.read_parquet(run / "tables" / "leaderboard.parquet"))
    assert any("does not apply: needs two-dimensional tensors" in line for line in lines)
    (row,) = [line for line in lines if line.startswith("| LoRA | adapter | data-free | TIES |")]
    assert re.search(r"\| \d\d\.\d ± \d\.\d \| \d\d\.\d \|  \|", row)


@pytest.mark.slow
def test_readme_figures_of_several_suites_are_refused(tmp_path: Path) -> None:
    for suite in ("one", "two"):
        add_model(tmp_path, "ties", {"a": first(5, 10)}, space="weight", suite=suite)
    make_tables(tables_job(tmp_path))
    with pytest.raises(ValueError, match="got 2 pairs of backbone and suite, expected one"):
        runpy.run_path(DOCS_FIGURES)["write_pages"](tmp_path / "tables", tmp_path / "demo")


def test_labels_read_as_papers_spell_them() -> None:
    names = (
        "ties",
        "tsv_m",
        "concrete_task_arithmetic",
        "adamerging_task_wise",
        "l_lora",
        "sms_spam",
        *("simple_average", "multitask", "dare_task_arithmetic", "lines_ties", "concrete_tsv_m", "magnitude_prune"),
        *("adamerging_plus_plus", "regmean_plus_plus", "greedy_task_arithmetic", "iso_cts", "knots", "multislerp"),
    )
    assert [label(name) for name in names] == [
        *("TIES", "TSV-M", "Concrete task arithmetic", "AdaMerging task-wise", "L-LoRA", "SMS spam"),
        *("Simple average", "Multi-task", "DARE + task arithmetic", "LiNeS + TIES", "Concrete TSV-M"),
        *("Magnitude pruning", "AdaMerging++", "RegMean++", "Greedy task arithmetic", "Iso-CTS", "KnOTS + TIES"),
        "Multi-SLERP",
    ]


def test_numbers_read_well() -> None:
    assert (percent(0.8444), percent(float("nan")), points(-0.031)) == ("84.4", "–", "−3.1")
    assert [duration(s) for s in (0.42, 12.4, 200, 7500)] == ["0.4 s", "12 s", "3 min 20 s", "2 h 05 min"]
    assert [size(n, "B") for n in (0, 1.2e9, 3.4e5)] == ["0 B", "1.2 GB", "340.0 kB"]
    assert [millions(n) for n in (12_340_000, 4_000, 0, float("nan"))] == ["12.3 M", "0.004 M", "–", "–"]


@pytest.mark.slow
def test_tables_and_report_do_not_import_torch() -> None:
    code = "import sys, fusion.stages.tables, fusion.stages.report; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_rules_that_asked_for_far_too_much_are_named_where_the_costs_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_pair(tmp_path)
    add_model(tmp_path, "ties", {"a": first(5, 10)}, space="weight", suite="single", asked_mb=8000.0, used_mb=900.0)
    said = "used under a quarter of what was asked for (set-resources in profiles/slurm): fuse 900 of 8000 MB"
    page = report_of(tmp_path)[0]
    assert page.count(f"<p>Jobs {said}</p>") == 1
    assert said in capsys.readouterr().out, "the log of the tables says it, too"
