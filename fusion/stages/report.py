"""The report of a run: one self-contained page, and a summary for the terminal."""

from pathlib import Path
from textwrap import fill
from typing import Any

import jinja2
import pandas as pd
import yaml

import fusion.report
from fusion.artifacts import new_file
from fusion.job import Job, progress
from fusion.report.boards import missing
from fusion.report.robustness import robustness
from fusion.report.sections import sections
from fusion.stages.tables import TABLES
from fusion.tables.labels import duration, label, millions, percent, size
from fusion.tables.modelled import far_off
from fusion.tables.score_rows import measured
from fusion.tables.summary import Finding, findings


def make_report(job: Job) -> None:
    """Writes the page `output.report` and the text `output.summary` from the folder `input.tables`.

    params: settings = {run: name, title: text, config: the run's configuration}.
    """
    folder, settings = Path(job.input["tables"]), job.params["settings"]
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}
    found = findings(tables)
    with new_file(job.output["report"]) as temporary:
        temporary.write_text(page(tables, found, settings), encoding="utf-8")
    with new_file(job.output["summary"]) as temporary:
        temporary.write_text(terminal_summary(tables["leaderboard"], found, settings), encoding="utf-8")
    progress(f"report: {job.output['report']}, summary: {job.output['summary']}")


def page(tables: dict[str, pd.DataFrame], found: list[Finding], settings: dict[str, Any]) -> str:
    """The report as HTML that fetches nothing."""
    loader = jinja2.FileSystemLoader(Path(next(iter(fusion.report.__path__))))
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("page.html.j2").render(
        title=settings["title"],
        run=settings["run"],
        config=yaml.safe_dump(settings["config"], sort_keys=False, allow_unicode=True),
        findings=found,
        has_multitask=bool(tables["scores"]["method"].eq("multitask").any()),
        sections=sections(tables),
        robustness=robustness(tables["robustness"]),
        modelled=modelled(tables["modelled"]),
        provenance=provenance(tables["scores"]),
    )


def modelled(table: pd.DataFrame) -> dict[str, Any]:
    """What each stage took beside what it was reckoned to take, and where the two are far apart."""
    body = []
    for row in table.to_dict("records"):
        times = (duration(row[name]) for name in ("modelled_seconds", "seconds"))
        memory = (size(1e6 * row[name], "B") for name in ("modelled_mb", "mb"))
        body.append([row["stage"], f"{row['measured_jobs']} of {row['jobs']}", *times, *memory])
    head = ["Stage", "Jobs", "Time, modelled", "Time, measured", "Memory, modelled", "Memory, measured"]
    return {"head": head, "body": body, "far_off": far_off(table), "rates": _all(table["rates"])}


def provenance(scores: pd.DataFrame) -> dict[str, Any]:
    """Which code, configuration, seeds and data the scores came from."""
    test = measured(scores, "accuracy")
    facts = [
        ("Code version", _all(scores["code_version"])),
        ("Configurations", f"{scores['config_hash'].nunique()} distinct, one for each model's own settings"),
        ("Seeds", _all(scores.loc[scores["method"] != "pretrained", "seed"])),
        ("Models scored", str(len(test.drop_duplicates(["backbone", "mode", "space", *_MODEL])))),
    ]
    data = [
        [label(task), str(rows["n"].max()), _all(rows["data_hash"].str[:16])] for task, rows in test.groupby("task")
    ]
    return {"facts": facts, "data": {"head": ["Task", "Test examples", "Fingerprint"], "body": data}}


_MODEL = ["suite", "method", "seed", "trained_on"]


def terminal_summary(board: pd.DataFrame, found: list[Finding], settings: dict[str, Any]) -> str:
    """The leaderboard in aligned columns and the findings as a list, for a terminal of 100 columns."""
    lines = [f"{settings['title']} ({settings['run']})", ""]
    for (backbone, suite, mode), rows in board.groupby(["backbone", "suite", "mode"], sort=False):
        lines += [
            f"{label(mode)}  ·  {backbone}, {suite}",
            _line("", "space", "accuracy", "95 % CI", "normalized"),
        ]
        for kind, members in rows.groupby("method_class", sort=False):
            made = members[members["accuracy"].notna()]
            lines += [f"  {kind}", *(_board_line(row) for row in made.to_dict("records")), *_missing_lines(members)]
        lines.append("")
    lines += ["Sanity summary", *(f"  - {f.text}" for f in found if not f.warning)]
    warnings = [f"  ! {f.text}" for f in found if f.warning]
    return "\n".join([*lines, "", "Warnings" if warnings else "No warnings", *warnings]) + "\n"


def _board_line(row: dict[Any, Any]) -> str:
    interval = f"{percent(row['ci_low'])} – {percent(row['ci_high'])}"
    name = label(row["method"]) + (" (test inputs)" if row["adapted_on"] == "test" else "")
    line = _line(name, row["space"], percent(row["accuracy"]), interval, percent(row["normalized"]))
    return f"{line}  + {millions(row['extra_parameters'])}" if row["method_class"] == "multi-model" else line


def _missing_lines(members: pd.DataFrame) -> list[str]:
    said = (f"{one['methods']} could not run: {one['reason']}" for one in missing(members))
    return [fill(text, 100, initial_indent=" " * 4, subsequent_indent=" " * 6) for text in said]


def _line(name: str, space: str, accuracy: str, interval: str, normalized: str) -> str:
    return f"    {name:<36}{space:<9}{accuracy:>9}{interval:>16}{normalized:>12}"


def _all(values: pd.Series) -> str:
    return ", ".join(str(value) for value in sorted(set(values.dropna()))) or "–"
