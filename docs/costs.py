"""Writes docs/costs.md: what the demo and every preset will cost, as `fusion check` says it.

python docs/costs.py
"""

import json
from collections.abc import Iterator
from pathlib import Path

import yaml
from tabulate import tabulate

from fusion.estimate import rates
from fusion.estimate.check import check
from fusion.estimate.jobs import Jobs
from fusion.estimate.table import by_stage
from fusion.plan import ROWS, read

DEMO = ROWS / "config.yaml"
PAGE = Path(__file__).with_suffix(".md")
ABOUT = """\
# What the presets cost

`fusion check CONFIG` says what a run will cost, before anything is downloaded; these are its tables. **All of this is
modelled**: no preset for a GPU has run at its true size, and the rates of the h100 are assumed. Those of the cpu are
measured for MiniLM and for merging, and guessed for DINOv2 and for the backward pass of CLIP.

Each stage's work is a function of the model's size, the number of tasks and examples (`fusion/estimate/stages.py`); the
rates of a machine turn it into seconds (`config/rates.yaml`; `--device`, `--rates FILE` of your own). The same figures,
with a margin, are what jobs ask a scheduler for. Where ≥ stands, something is unknown and left out; the lines below a
table name it, and the row of configuration to complete. `python docs/costs.py` writes this page."""


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page as Markdown."""
    configs = [DEMO, *sorted((ROWS / "presets").glob("*.yaml"))]
    return "\n\n".join([ABOUT, *("\n".join(_section(path)) for path in configs)]) + "\n"


def _section(path: Path) -> Iterator[str]:
    yield f"## {path.relative_to(ROWS.parent)}\n"
    title, blank, *table = check(path, form="pipe")
    yield from (f"{title}.", blank, *table[: table.index("")], "")
    yield from (f"- {line}" for line in table[table.index("") + 1 :])
    if path == DEMO:
        yield from ("", *_measured(path))


def _measured(path: Path) -> Iterator[str]:
    """The demo's stages as they were measured by `make bench`, in job-seconds."""
    found = json.loads((ROWS.parent / "benchmarks/results/demo.json").read_text(encoding="utf-8"))
    jobs = Jobs(read(yaml.safe_load(path.read_text(encoding="utf-8"))), rates.read("cpu"))
    body = [
        (one["stage"], f"{one['seconds']:.1f}", f"{found['stages'][one['stage']]['seconds']:.1f}")
        for one in by_stage(jobs)
        if one["stage"] in found["stages"]
    ]
    machine = "{processor}, {cores} cores, torch {torch}".format(**found["machine"])
    yield f"Beside what a run of it took ({machine}; the rates of its passes were taken from the same run's training"
    yield "and evaluation, fusing was not):\n"
    yield from tabulate(body, ("stage", "modelled, s", "measured, s"), "pipe", floatfmt=".1f").splitlines()


if __name__ == "__main__":
    main()
