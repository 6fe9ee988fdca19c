"""What each job of a plan costs, by its rule and wildcards, whose names are those of workflow/."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fusion.estimate import merging, stages
from fusion.estimate.every_job import every_job
from fusion.estimate.facts import Model, examples, model, prepared_bytes
from fusion.estimate.rates import Rates
from fusion.estimate.work import Unknown, Work
from fusion.pipelines import method_class, parts
from fusion.plan import Plan

Wildcards = Mapping[str, Any]
KEYS = ("statistic", "backbone", "mode", "space", "suite", "method", "task", "split", "off_diagonal", "corruption")


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
        self._merges: dict[tuple[str | int, ...], Work] = {}

    def work(self, rule: str, wildcards: Wildcards) -> Work:
        """What one job does; computed once for all that differ in nothing that matters."""
        return self._found(rule, wildcards)[0]

    def seconds(self, rule: str, wildcards: Wildcards) -> float:
        """How long one job takes, without what is unknown."""
        return self._found(rule, wildcards)[1]

    def groups(self) -> Iterator[tuple[str, dict[str, str], int]]:
        """Rules with the wildcards of jobs that cost the same, and how many there are of these."""
        for (rule, wildcards), count in self._counts.items():
            yield rule, dict(wildcards), count

    @cached_property
    def _counts(self) -> Counter[tuple[str, tuple[tuple[str, str], ...]]]:
        return Counter((rule, tuple(sorted(wildcards.items()))) for rule, wildcards in every_job(self.plan))

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

    def prepare_pixels(self, w: Wildcards) -> Work:
        count = examples(self.plan, w["task"], w["split"], self.plan.pictures(w["split"]))
        return stages.prepare_pixels(model(self.plan, w["backbone"]), count)

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
        tasks = [w["task"]] if "task" in w else self.plan.rows.suites[w["suite"]].tasks
        how = self.plan.config.finetune
        return stages.finetune(self._model(w), len(tasks), how.steps, how.batch_size, self._is_image(tasks[0]))

    finetune_multitask = finetune_task

    def statistics(self, w: Wildcards) -> Work:
        fuse, task = self.plan.config.fuse, w["task"]
        count, is_image = examples(self.plan, task, "train", fuse.statistics_examples), self._is_image(task)
        if w["statistic"] == "fisher":
            directions = 1 if fuse.fisher_labels == "sampled" else len(self.plan.rows.tasks[task].classes) - 1
            return stages.fisher(self._model(w), directions, count, is_image)
        return stages.gram(self._model(w), count, self.plan.config.evaluate.batch_size, is_image)

    def merged_grams(self, w: Wildcards) -> Work:
        tasks, fuse = self.plan.rows.suites[w["suite"]].tasks, self.plan.config.fuse
        size, is_image = self.plan.config.evaluate.batch_size, self._is_image(tasks[0])
        return stages.merged_grams(self._model(w), len(tasks), fuse.statistics_examples, size, is_image)

    def fuse(self, w: Wildcards) -> Work:
        if self.plan.reason(w["mode"], w["space"], w["method"]):
            return Work(written=stages.FILE_BYTES)
        method, tasks = self._method(w["method"]), self.plan.rows.suites[w["suite"]].tasks
        merging_work = self._merging(w, len(tasks))
        scoring = stages.fuse(
            self._model(w),
            [examples(self.plan, task, "val", self.plan.config.fuse.select_examples) for task in tasks],
            batch_size=self.plan.config.evaluate.batch_size,
            candidates=len(method.grid),
            adaptive=method.is_adaptive,
            is_masked="concrete" in parts(method.pipeline),
            models=len(tasks) if method_class(method.pipeline) == "multi-model" else 1,
        )
        return scoring + merging_work

    def _merging(self, w: Wildcards, tasks: int) -> Work:
        """What a method computes for all points of its grid, beside scoring: alike for all suites of as many tasks."""
        key = (w["method"], w["backbone"], w["mode"], w["space"], tasks)
        if key not in self._merges:
            how, method, sizes = self.plan.config, self._method(w["method"]), self._model(w)
            is_image = self._is_image(self.plan.rows.suites[w["suite"]].tasks[0])
            settings = {"batch_size": how.fuse.batch_size, "loss_examples": how.fuse.loss_examples}
            settings["loss_batch"] = how.evaluate.batch_size
            crossed, lacks = known(
                merging.traversed, self.rates, method.pipeline, method.grid, method.merges, sizes, tasks
            )
            passes, more = known(merging.passes, method.pipeline, method.grid, sizes, tasks, settings, is_image)
            self._merges[key] = (passes or Work()) + Work(traversed=crossed, unknown=lacks | more)
        return self._merges[key]

    def evaluate_pretrained(self, w: Wildcards) -> Work:
        suite, limit = self.plan.rows.suites[w["suite"]], self.plan.config.evaluate.examples
        is_own = "task" in w and not self.plan.config.evaluate.cross_task
        tasks = [w["task"]] if is_own else [*suite.tasks, *suite.unseen]
        tests = [examples(self.plan, task, "test", limit) for task in tasks]
        if "task" in w:  # an individual model, also on the validation examples of its own task
            tests.append(examples(self.plan, w["task"], "val", limit))
        if "method" in w and self.plan.reason(w["mode"], w["space"], w["method"]):
            return Work(written=2 * stages.FILE_BYTES)
        return stages.evaluate(self._model(w), tests, self.plan.config.evaluate.batch_size)

    evaluate_individual = evaluate_multitask = evaluate_fused = evaluate_pretrained

    def similarity(self, w: Wildcards) -> Work:
        return stages.similarity(self._model(w), len(self.plan.rows.suites[w["suite"]].tasks))

    def tables(self, w: Wildcards) -> Work:
        scored = [(self.work(rule, one), one, n) for rule, one, n in self.groups() if rule.startswith("evaluate_")]
        rows = sum(n * work.forwards for work, _, n in scored)
        tests = max(work.forwards for work, one, _ in scored if "mode" not in one)
        whole = sum(n for _, one, n in scored if one["suite"] in self.plan.config.suites)
        unknown = frozenset[tuple[str, str]]().union(*(work.unknown for work, _, _ in scored))
        return replace(stages.tables(int(rows), whole, int(tests)), unknown=unknown)

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
