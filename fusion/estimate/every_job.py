"""Which jobs a plan has, by rules and wildcards of workflow/, without versions and seeds: no cost depends on those."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, product
from typing import Any

from fusion.plan import Plan

Job = tuple[str, dict[str, str]]  # a rule, and the wildcards of one job of it


def every_job(plan: Plan) -> Iterator[Job]:
    """Every job of a run of which nothing is made yet."""
    yield from chain(prepared(plan), trained(plan), merged(plan), evaluated(plan))
    yield from (("tables", {}), ("report", {}))


def prepared(plan: Plan) -> Iterator[Job]:
    """What is made of sources, and what every mode starts from."""
    run, rows = plan.config, plan.rows
    tested = {suite: (*rows.suites[suite].tasks, *rows.suites[suite].unseen) for suite in run.suites}
    tasks = dict.fromkeys(task for one in tested.values() for task in one)
    sources = [read_from(rows.tasks[task].source, rows.archives) for task in tasks]
    sources += [read_from(rows.backbones[name].source) for name in run.backbones]
    for archive in dict.fromkeys(source.archive for source in sources if source and source.archive):
        yield "fetch_archive", {"archive": archive}
    for task in tasks:
        yield "prepare_task", {"task": task}
    conditions = [(task, rows.suites[suite].condition) for suite in run.suites for task in tested[suite]]
    for task, condition in dict.fromkeys(pair for pair in conditions if pair[1]):
        yield "corrupt_task", {"task": task, "corruption": condition}
    adapters = [mode for mode in run.modes if rows.modes[mode].adapter]
    for backbone in run.backbones:
        yield "prepare_backbone", {"backbone": backbone}
        yield from (("prepare_pixels", {"backbone": backbone} | one) for one in pictures(plan, conditions))
        yield from (("make_head", {"backbone": backbone, "task": task}) for task in tasks)
        yield from (("make_init", {"backbone": backbone, "mode": mode}) for mode in adapters for _ in run.seeds)


def read_from(source: Callable[..., Any], *given: Any) -> Any:
    """What a row is read from; None where that is gone, and what was prepared from it takes its place."""
    try:
        return source(*given)
    except ValueError:
        return None


def pictures(plan: Plan, tested: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """The splits whose pictures are kept as a backbone takes them; tested: every task, and what its tests are under."""
    wanted = [(task, split, "") for task in plan.tasks for split in ("train", "val") if plan.pictures(split) != 0]
    wanted += [(task, "test", condition) for task, condition in tested]
    return [
        {"task": task, "split": split, "corruption": condition}
        for task, split, condition in dict.fromkeys(wanted)
        if plan.rows.tasks[task].modality == "image"
    ]


def trained(plan: Plan) -> Iterator[Job]:
    """Fine-tuned models, and how they lie to each other."""
    run = plan.config
    for backbone, mode, _ in product(run.backbones, run.modes, run.seeds):
        place = {"backbone": backbone, "mode": mode}
        for task in plan.tasks:
            rule = "take_finetuned" if plan.checkpoint(backbone, mode, task) else "finetune_task"
            yield rule, place | {"task": task}
        for suite in (name for name in run.suites if plan.trained_in(name) == name):
            if run.multitask:
                yield "finetune_multitask", place | {"suite": suite}
            for space in plan.rows.modes[mode].spaces:
                yield "similarity", place | {"space": space, "suite": suite}


def merged(plan: Plan) -> Iterator[Job]:
    """Fusions, and the statistics that they take, which methods and suites share."""
    wanted: dict[tuple[Any, ...], Job] = {}
    for place, suite, method, seed in fused(plan):
        if plan.fused_in(suite, method) != suite:
            continue
        yield "fuse", place | {"suite": suite, "method": method}
        if plan.reason(place["mode"], place["space"], method):
            continue
        kinds = {"fishers": "fisher", "grams": "gram"}
        for kind in (kinds[need] for need in plan.needs(method) & kinds.keys()):
            for task in plan.rows.suites[suite].tasks:
                own = place | {"statistic": kind, "task": task}
                wanted[*own.values(), seed] = "statistics", own
        for factor in plan.off_diagonals(method):
            own = place | {"suite": suite, "off_diagonal": str(factor)}
            wanted[*own.values(), seed] = "merged_grams", own
    yield from wanted.values()


def evaluated(plan: Plan) -> Iterator[Job]:
    """Every model that is scored, on every suite."""
    run = plan.config
    for backbone, suite in product(run.backbones, run.suites):
        yield "evaluate_pretrained", {"backbone": backbone, "suite": suite}
        for mode, _ in product(run.modes, run.seeds):
            place = {"backbone": backbone, "mode": mode, "suite": suite}
            for task in plan.rows.suites[suite].tasks:
                yield "evaluate_individual", place | {"task": task}
            if run.multitask:
                yield "evaluate_multitask", place
    for place, suite, method, _ in fused(plan):
        yield "evaluate_fused", place | {"suite": suite, "method": method}


def fused(plan: Plan) -> Iterator[tuple[dict[str, str], str, str, int]]:
    """Every fused model that is scored: where, of which suite, by which method and seed."""
    run = plan.config
    suites = [*run.suites, *plan.subsets]
    for backbone, mode, method in product(run.backbones, run.modes, run.methods):
        for space, suite, seed in product(plan.spaces(mode, method), suites, run.seeds):
            yield {"backbone": backbone, "mode": mode, "space": space}, suite, method, seed
