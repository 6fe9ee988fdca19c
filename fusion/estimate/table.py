"""What a run will cost as a table: one row a rule, what all take, and which rows of configuration it lacks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fusion.estimate.jobs import Jobs
from fusion.estimate.work import Work
from fusion.tables.labels import duration, size

HEAD = ("rule", "jobs", "forward", "backward", "time", "longest job", "on disk", "memory", "GPU memory")

STAGES = {  # the folder of a rule's benchmarks, where it is not the rule's name
    **{"fetch_archive": "archives", "prepare_task": "data", "corrupt_task": "data", "prepare_backbone": "pretrained"},
    **{"make_head": "heads", "make_init": "init", "finetune_task": "finetuned", "take_finetuned": "finetuned"},
    **{"finetune_multitask": "multitask", "merged_grams": "statistics", "fuse": "fused"},
    **dict.fromkeys(("evaluate_pretrained", "evaluate_individual", "evaluate_multitask", "evaluate_fused"), "scores"),
}


@dataclass
class Rule:
    """All jobs of a rule. seconds: of all; longest: of one; host: the most bytes of memory of one."""

    name: str
    jobs: int = 0
    work: Work = field(default_factory=Work)
    seconds: float = 0.0
    longest: float = 0.0
    host: float = 0.0

    def add(self, other: "Rule") -> None:
        """Counts more jobs."""
        self.jobs += other.jobs
        self.work += other.work
        self.seconds += other.seconds
        self.longest = max(self.longest, other.longest)
        self.host = max(self.host, other.host)


def rules(jobs: Jobs) -> list[Rule]:
    """Every rule of the run."""
    found: dict[str, Rule] = {}
    for name, wildcards, count in jobs.groups():
        work, seconds = jobs.work(name, wildcards), jobs.seconds(name, wildcards)
        one = Rule(name, count, work.times(count), count * seconds, seconds, jobs.rates.host_bytes(work))
        found.setdefault(name, Rule(name)).add(one)
    return list(found.values())


def by_stage(jobs: Jobs) -> list[dict[str, Any]]:
    """What the jobs of each stage take, as `fusion.tables.modelled` reads it; none of which something is unknown."""
    found: dict[str, Rule] = {}
    for rule in rules(jobs):
        stage = STAGES.get(rule.name, rule.name)
        found.setdefault(stage, Rule(stage)).add(rule)
    machine = jobs.plan.config.rates
    return [
        {"stage": one.name, "jobs": one.jobs, "seconds": one.seconds, "mb": one.host / 1e6, "rates": machine}
        for one in found.values()
        if not one.work.unknown
    ]


def rows(found: list[Rule], is_gpu: bool) -> Iterator[list[str]]:
    """The cells of every rule below HEAD, and of all rules together."""
    total = Rule("all")
    for rule in found:
        total.add(rule)
    for rule in (*found, total):
        cells = [_shown(rule, size, value) for value in (rule.work.forwards, rule.work.backwards)]
        cells += [_shown(rule, duration, value) for value in (rule.seconds, rule.longest)]
        cells += [_shown(rule, _bytes, rule.work.written, "unknown"), _shown(rule, _bytes, rule.host)]
        yield [rule.name, f"{rule.jobs:,}", *cells, _shown(rule, _bytes, rule.work.device) if is_gpu else "–"]


def _bytes(value: float) -> str:
    return size(value, "B")


def _shown(rule: Rule, form: Callable[[float], str], value: float, nothing: str = "–") -> str:
    """The value; '≥' where something that may belong to it is unknown, `nothing` if that is all of it."""
    if not value:
        return nothing if rule.work.unknown and rule.seconds else "unknown" if rule.work.unknown else "–"
    return f"{'≥ ' if rule.work.unknown else ''}{form(value).strip()}"
