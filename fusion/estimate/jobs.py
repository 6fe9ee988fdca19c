"""The jobs of a plan by rule, and what each of them costs: the names of rules and wildcards are those of workflow/."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from fusion.estimate import merging, stages
from fusion.estimate.facts import Model, examples, model, prepared_bytes
from fusion.estimate.rates import Rates
from fusion.estimate.work import Unknown, Work
from fusion.pipelines import method_class, parts
from fusion.plan import Plan

Wildcards = Mapping[str, Any]
KEYS = ("statistic", "backbone", "mode", "space", "suite", "method", "task", "off_diagonal", "corruption")


@dataclass(frozen=True)
class Method:
    """A row of config/methods.yaml with its grid written out; merges: how many points of it are merged anew."""

    pipeline: str
    grid: list[dict[str, Any]]
    is_adaptive: bool
    merges: int


def known(function: Callable[..., Any], *given: Any) -> tuple[Any, frozenset[tuple[str, str]]]:
    """What it returns, or 0 where that is unknown; and what is."""
    try:
        return function(*given), frozenset()
    except Unknown as error:
        return 0, frozenset([(error.name, error.what)])


class Jobs:
    """What the jobs of a plan are, and the work of each, by its rule and wildcards."""

    def __init__(self, plan: Plan, rates: Rates) -> None:
        self.plan, self.rates = plan, rates
        self._known: dict[tuple[str, ...], tuple[Work, float]] = {}
        self._methods: dict[str, Method] = {}

    def work(self, rule: str, wildcards: Wildcards) -> Work:
        """What one job does; computed once for all that differ in nothing that matters."""
        return self._found(rule, wildcards)[0]

    def seconds(self, rule: str, wildcards: Wildcards) -> float:
        """How long one job takes, without what is unknown."""
        return self._found(rule, wildcards)[1]

    def _found(self, rule: str, wildcards: Wildcards) -> tuple[Work, float]:
        key = (rule, *(wildcards.get(name, "") for name in KEYS))
        if key not in self._known:
            self._known[key] = self._timed(rule, wildcards)
        return self._known[key]

    def _timed(self, rule: str, w: Wildcards) -> tuple[Work, float]:
        mode = w.get("mode")
        is_adapter = bool(mode) and self.plan.rows.modes[mode].adapter is not None
        backbone = w.get("backbone") or (self.plan.config.backbones[0] if "task" in w else None)
        work = Work()
        try:
            work = getattr(self, rule)(w)
            return work, self.rates.seconds(work, backbone, is_adapter)
        except Unknown as error:
            return replace(work, unknown=work.unknown | {(error.name, error.what)}), 0.0

    # what one job of a rule does

    def fetch_archive(self, w: Wildcards) -> Work:
        return stages.fetch_archive()

    def prepare_task(self, w: Wildcards) -> Work:
        total = sum(examples(self.plan, w["task"], split) for split in ("train", "val", "test"))
        stored, lacks = known(prepared_bytes, self.plan, w["task"])
        work = stages.prepare_task(total, stored, self._is_image(w["task"]))
        return replace(work, unknown=lacks)

    def corrupt_task(self, w: Wildcards) -> Work:
        side = model(self.plan, self.plan.config.backbones[0]).size.side or 0
        return stages.corrupt_task(examples(self.plan, w["task"], "test"), side)

    def prepare_backbone(self, w: Wildcards) -> Work:
        return stages.prepare_backbone(model(self.plan, w["backbone"]))

    def make_head(self, w: Wildcards) -> Work:
        row = self.plan.rows.tasks[w["task"]]
        train = examples(self.plan, w["task"], "train")
        return stages.make_head(model(self.plan, w["backbone"]), len(row.classes), len(row.prompts), train)

    def make_init(self, w: Wildcards) -> Work:
        return stages.make_init(self._model(w))

    def take_finetuned(self, w: Wildcards) -> Work:
        return stages.take_finetuned(self._model(w))

    def finetune_task(self, w: Wildcards) -> Work:
        tasks = [w["task"]] if "task" in w else self.plan.rows.suites[w["suite"]].tasks  # type: ignore[operator]
        how = self.plan.config.finetune
        return stages.finetune(self._model(w), len(tasks), how.steps, how.batch_size, self._is_image(tasks[0]))

    finetune_multitask = finetune_task

    def statistics(self, w: Wildcards) -> Work:
        fuse, task = self.plan.config.fuse, w["task"]
        count, is_image = examples(self.plan, task, "train", fuse.statistics_examples), self._is_image(task)
        if w["statistic"] == "fisher":
            return stages.fisher(self._model(w), len(self.plan.rows.tasks[task].classes), count, is_image)
        return stages.gram(self._model(w), count, self.plan.config.evaluate.batch_size, is_image)

    def merged_grams(self, w: Wildcards) -> Work:
        tasks, fuse = self.plan.rows.suites[w["suite"]].tasks, self.plan.config.fuse
        size, is_image = self.plan.config.evaluate.batch_size, self._is_image(tasks[0])
        return stages.merged_grams(self._model(w), len(tasks), fuse.statistics_examples, size, is_image)

    def fuse(self, w: Wildcards) -> Work:
        if self.plan.reason(w["mode"], w["space"], w["method"]):
            return Work(written=stages.FILE_BYTES)
        method, tasks = self._method(w["method"]), self.plan.rows.suites[w["suite"]].tasks
        sizes, is_image, how = self._model(w), self._is_image(tasks[0]), self.plan.config.fuse
        batch_size = self.plan.config.evaluate.batch_size
        settings = {"batch_size": how.batch_size, "loss_examples": how.loss_examples, "loss_batch": batch_size}
        merged, lacks = known(merging.traversed, self.rates, method.pipeline, method.merges, sizes, len(tasks))
        extra, more = known(merging.passes, method.pipeline, method.grid, sizes, len(tasks), settings, is_image)
        work = stages.fuse(
            sizes,
            [examples(self.plan, task, "val", how.select_examples) for task in tasks],
            batch_size=batch_size,
            is_image=is_image,
            candidates=len(method.grid),
            merging=merged,
            extra=extra or Work(),
            adaptive=method.is_adaptive,
            is_masked="concrete" in parts(method.pipeline),
            models=len(tasks) if method_class(method.pipeline) == "multi-model" else 1,
        )
        return replace(work, unknown=lacks | more)

    def evaluate_pretrained(self, w: Wildcards) -> Work:
        suite, limit = self.plan.rows.suites[w["suite"]], self.plan.config.evaluate.examples
        tests = [examples(self.plan, task, "test", limit) for task in (*suite.tasks, *suite.unseen)]
        if "task" in w:  # an individual model, also on the validation examples of its own task
            tests.append(examples(self.plan, w["task"], "val", limit))
        if "method" in w and self.plan.reason(w["mode"], w["space"], w["method"]):
            return Work(written=2 * stages.FILE_BYTES)
        batch_size, is_image = self.plan.config.evaluate.batch_size, self._is_image(suite.tasks[0])
        return stages.evaluate(self._model(w), tests, batch_size, is_image)

    evaluate_individual = evaluate_multitask = evaluate_fused = evaluate_pretrained

    def similarity(self, w: Wildcards) -> Work:
        return stages.similarity(self._model(w), len(self.plan.rows.suites[w["suite"]].tasks))

    def tables(self, w: Wildcards) -> Work:
        scored = [(rule, one, n) for (rule, one), n in self._counts.items() if rule.startswith("evaluate_")]
        rows = sum(n * self.work(rule, dict(one)).forwards for rule, one, n in scored)
        tests = max(self.work(rule, dict(one)).forwards for rule, one, n in scored if rule == "evaluate_pretrained")
        whole = sum(n for _, one, n in scored if dict(one)["suite"] in self.plan.config.suites)
        return stages.tables(int(rows), whole, int(tests))

    def report(self, w: Wildcards) -> Work:
        run = self.plan.config
        return stages.report(len(run.backbones) * len(run.suites) * len(run.modes))

    def _method(self, name: str) -> Method:
        if name not in self._methods:
            row, is_adaptive = self.plan.rows.methods[name], self.plan.adapt(name) is not None
            grid = row.grid()
            merges = merging.merges(row.algorithm, grid, is_adaptive)
            self._methods[name] = Method(row.algorithm, grid, is_adaptive, merges)
        return self._methods[name]

    def _model(self, w: Wildcards) -> Model:
        return model(self.plan, w["backbone"], w.get("mode", ""), w.get("space", "weight"))

    def _is_image(self, task: str) -> bool:
        return self.plan.rows.tasks[task].modality == "image"

    # which jobs there are

    def groups(self) -> Iterator[tuple[str, dict[str, str], int]]:
        """Rules with the wildcards of jobs that cost the same, and how many there are of these."""
        for (rule, wildcards), count in self._counts.items():
            yield rule, dict(wildcards), count

    @cached_property
    def _counts(self) -> Counter[tuple[str, tuple[tuple[str, str], ...]]]:
        found: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        for rule, wildcards in (*self._prepared(), *self._trained(), *self._merged(), *self._evaluated()):
            found[rule, tuple(sorted(wildcards.items()))] += 1
        found["tables", ()] = found["report", ()] = 1
        return found

    def _prepared(self) -> Iterator[tuple[str, dict[str, str]]]:
        run, rows = self.plan.config, self.plan.rows
        tested = {suite: (*rows.suites[suite].tasks, *rows.suites[suite].unseen) for suite in run.suites}
        tasks = dict.fromkeys(task for one in tested.values() for task in one)
        sources = [rows.tasks[task].source(rows.archives) for task in tasks]
        sources += [rows.backbones[name].source() for name in run.backbones]
        for archive in dict.fromkeys(source.archive for source in sources if source.archive):
            yield "fetch_archive", {"archive": archive}
        for task in tasks:
            yield "prepare_task", {"task": task}
        conditions = [(task, rows.suites[suite].condition) for suite in run.suites for task in tested[suite]]
        for task, condition in dict.fromkeys(pair for pair in conditions if pair[1]):
            yield "corrupt_task", {"task": task, "corruption": condition}
        for backbone in run.backbones:
            yield "prepare_backbone", {"backbone": backbone}
            yield from (("make_head", {"backbone": backbone, "task": task}) for task in tasks)
            adapters = [mode for mode in run.modes if rows.modes[mode].adapter]
            yield from (("make_init", {"backbone": backbone, "mode": mode}) for mode in adapters for _ in run.seeds)

    def _trained(self) -> Iterator[tuple[str, dict[str, str]]]:
        run, plan = self.plan.config, self.plan
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

    def _merged(self) -> Iterator[tuple[str, dict[str, str]]]:
        plan = self.plan
        wanted: dict[tuple[Any, ...], dict[str, str]] = {}  # statistics, which methods and suites share
        for place, suite, method, seed in self._fused():
            if plan.fused_in(suite, method) != suite:
                continue
            yield "fuse", place | {"suite": suite, "method": method}
            if plan.reason(place["mode"], place["space"], method):
                continue
            kinds = {"fishers": "fisher", "grams": "gram"}
            for kind in (kinds[need] for need in plan.needs(method) & kinds.keys()):
                for task in plan.rows.suites[suite].tasks:
                    own = place | {"statistic": kind, "task": task}
                    wanted[("statistics", *own.values(), seed)] = own
            for factor in plan.off_diagonals(method):
                own = place | {"suite": suite, "off_diagonal": str(factor)}
                wanted[("merged_grams", *own.values(), seed)] = own
        for (rule, *_), own in wanted.items():
            yield rule, own

    def _evaluated(self) -> Iterator[tuple[str, dict[str, str]]]:
        run = self.plan.config
        for backbone, suite in product(run.backbones, run.suites):
            yield "evaluate_pretrained", {"backbone": backbone, "suite": suite}
            for mode, _ in product(run.modes, run.seeds):
                place = {"backbone": backbone, "mode": mode, "suite": suite}
                tasks = self.plan.rows.suites[suite].tasks
                yield from (("evaluate_individual", place | {"task": task}) for task in tasks)
                if run.multitask:
                    yield "evaluate_multitask", place
        for place, suite, method, _ in self._fused():
            yield "evaluate_fused", place | {"suite": suite, "method": method}

    def _fused(self) -> Iterator[tuple[dict[str, str], str, str, int]]:
        """Every fused model that is scored: where, of which suite, by which method and seed."""
        run, plan = self.plan.config, self.plan
        suites = [*run.suites, *plan.subsets]
        for backbone, mode, method in product(run.backbones, run.modes, run.methods):
            for space, suite, seed in product(plan.spaces(mode, method), suites, run.seeds):
                yield {"backbone": backbone, "mode": mode, "space": space}, suite, method, seed
