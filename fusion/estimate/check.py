"""`fusion check CONFIG`: what a run will cost, before it runs, as text."""

from collections.abc import Iterator
from pathlib import Path

import yaml
from tabulate import tabulate

from fusion.estimate import rates
from fusion.estimate.jobs import Jobs
from fusion.estimate.table import HEAD, Rule, rows, rules
from fusion.plan import LOADER, ROWS, read

NOTES = (
    "Passes are of one example each. Time is that of all jobs one after another, each with its cores, and GPU if any.",
    "Not counted: fetched archives, a hub's cache, logs, and the checkpoints of what is training.",
)


def check(
    config: Path, device: str | None = None, file: Path = ROWS / "rates.yaml", form: str = "simple"
) -> Iterator[str]:
    """The lines of the table. device: a row of `file`, if not the one that the configuration names."""
    plan = read(yaml.load(config.read_text(encoding="utf-8"), Loader=LOADER) or {})
    name = device or plan.config.rates
    machine = rates.read(name, file)
    found = rules(Jobs(plan, machine))
    alignment = ("left", *["right"] * (len(HEAD) - 1))
    yield f"{plan.config.title or plan.config.run}, modelled at the rates of {name} ({machine.source})"
    yield ""
    text = tabulate(rows(found, machine.is_gpu), HEAD, form, disable_numparse=True, colalign=alignment)
    yield from text.splitlines()
    yield ""
    yield from NOTES
    if not plan.config.keep_fused:
        yield "Fused models are deleted once they are scored; what is on disk is counted with all of them at once."
    yield from missing(found)


def brief(jobs: Jobs) -> Iterator[str]:
    """What the whole run takes, in a line, and what is not known of it."""
    found = rules(jobs)
    *_, (_, count, forward, backward, time, _, disk, memory, _) = rows(found, False)
    yield f"The whole run, modelled at the rates of {jobs.plan.config.rates} (by rule: fusion check CONFIG):"
    passes = f"{forward} forward and {backward} backward passes"
    yield f"{count} jobs of {time} in all, {passes}, {disk} on disk, at most {memory} of memory a job"
    yield from missing(found)


def missing(found: list[Rule]) -> Iterator[str]:
    """A line for every kind of fact that is not known, with the names of what it is not known of."""
    unknown = {pair for rule in found for pair in rule.work.unknown}
    for what in sorted({what for _, what in unknown}):
        names = ", ".join(sorted(name for name, own in unknown if own == what))
        yield f"Unknown, and left out where ≥ stands: {what}: {names}"
