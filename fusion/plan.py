"""What a run does: its configuration and the rows of config/ that it names, checked before anything runs.

`read(config)` joins the row files with the rows that a run defines or changes for itself. No torch here: Snakemake
reads this on every start.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fusion.config import Config
from fusion.data.rows import ArchiveRow, TaskRow
from fusion.model_rows import BackboneRow, CheckpointsRow, ModeRow, WeightsSource
from fusion.pipelines import merged_grams_factor, method_class, needs, parts
from fusion.rows import MethodRow, Name, SuiteRow, first_error, require

ROWS = Path(__file__).parent.parent / "config"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
SUBSET = ":"  # between the name of a suite and the tasks of a subset, as no row's name has it


class Rows(BaseModel):
    """Every row that the run can name."""

    archives: dict[Name, ArchiveRow]
    tasks: dict[Name, TaskRow]
    backbones: dict[Name, BackboneRow]
    checkpoints: dict[Name, CheckpointsRow]
    modes: dict[Name, ModeRow]
    suites: dict[Name, SuiteRow]
    methods: dict[Name, MethodRow]


class Plan(BaseModel):
    """A checked configuration: the run, and the rows it names."""

    config: Config
    rows: Rows

    @property
    def subsets(self) -> dict[str, str]:
        """The suites that are merged because they are subsets of one of the run's, and which."""
        found = {suite: suite.partition(SUBSET)[0] for suite in self.rows.suites if SUBSET in suite}
        return {suite: whole for suite, whole in found.items() if whole in self.config.suites}

    @property
    def tasks(self) -> list[str]:
        """The tasks of all suites that a model is fine-tuned on, each once."""
        return list(dict.fromkeys(task for suite in self.config.suites for task in self.rows.suites[suite].tasks))

    def checkpoint(self, backbone: str, mode: str, task: str) -> WeightsSource | None:
        """Where somebody else's model of a task is, if it takes the place of the run's own."""
        rows = [self.rows.checkpoints[name] for name in self.config.checkpoints]
        return next((row.models[task] for row in rows if (row.backbone, row.mode) == (backbone, mode)), None)

    def trained_in(self, suite: str) -> str:
        """The first suite of the run with the same tasks: what sees no test input is made for it, and serves all."""
        tasks = self.rows.suites[suite].tasks
        return next((name for name in self.config.suites if self.rows.suites[name].tasks == tasks), suite)

    def fused_in(self, suite: str, method: str) -> str:
        """The suite whose model of a method is scored on a suite: its own only where the method sees test inputs."""
        adapt = self.adapt(method)
        return suite if adapt and adapt["adapted_on"] == "test" else self.trained_in(suite)

    def mode(self, backbone: str, mode: str) -> dict[str, Any]:
        """A mode as its stages need it: its row, with the backbone's target modules and frozen parameters."""
        settings = self.rows.modes[mode].model_dump(exclude={"spaces"})
        if settings["adapter"] is not None:
            settings["adapter"]["target_modules"] = self.rows.backbones[backbone].target_modules
        return settings | {"frozen": self.rows.backbones[backbone].frozen}

    def spaces(self, mode: str, method: str) -> list[str]:
        """The spaces in which a method merges a mode's models; all of them where it cannot in any, to say so."""
        wanted, known = self.rows.methods[method].spaces, self.rows.modes[mode].spaces
        return [space for space in known if wanted is None or space in wanted] or list(known)

    def reason(self, mode: str, space: str, method: str) -> str:
        """Why a method cannot merge a mode's models there, as far as rows can tell; '' where it can."""
        wanted, known = self.rows.methods[method].spaces, self.rows.modes[mode].spaces
        if wanted is not None and not set(wanted) & set(known):
            return f"merges in {' or '.join(wanted)} space, which {mode} does not have"
        if space == "adapter" and self.needs(method) & {"grams", "merged_grams"}:
            return "takes the inputs of the backbone's linear layers, and A and B are not among those"
        return ""

    def needs(self, method: str) -> set[str]:
        """What a method takes beside task vectors: 'objective', 'loss', 'fishers', 'grams', 'merged_grams'."""
        return {need for part in parts(self.rows.methods[method].algorithm) for need in needs(part)}

    def adapt(self, method: str) -> dict[str, Any] | None:
        """Which unlabelled inputs a method sees, in which batches; nothing for one that sees none."""
        if "objective" not in self.needs(method):
            return None
        settings = self.config.fuse.model_dump(include={"adapted_on", "batch_size"})
        own = self.rows.methods[method].adapted_on
        return settings | ({"adapted_on": own} if own else {})

    def labelled(self, method: str) -> dict[str, int]:
        """How many labelled training examples of a task a method sees through each thing it needs."""
        fuse, wanted = self.config.fuse, self.needs(method)
        counts = {"loss": fuse.loss_examples} | dict.fromkeys(
            ("fishers", "grams", "merged_grams"), fuse.statistics_examples
        )
        return {need: count for need, count in counts.items() if need in wanted}

    def off_diagonals(self, method: str) -> list[float]:
        """The factors with which a method's Gram matrices of merged inputs are made, for they depend on them."""
        row = self.rows.methods[method]
        factor = merged_grams_factor(row.algorithm)
        return list(dict.fromkeys(one[factor] for one in row.grid())) if factor else []

    def select(self) -> dict[str, Any]:
        """How many validation examples choose from a grid, and in which batches they are scored."""
        return {"limit": self.config.fuse.select_examples, "batch_size": self.config.evaluate.batch_size}

    def pictures(self, split: str) -> int | None:
        """How many pictures of a split are prepared: as many of val and test as the run reads, None for all."""
        if split == "train":
            return self.config.pixels.train_examples
        read = [self.config.evaluate.examples, *([self.config.fuse.select_examples] if split == "val" else [])]
        adapted = any(seen["adapted_on"] == split for seen in map(self.adapt, self.config.methods) if seen)
        limits = [limit for limit in read if limit is not None]
        return max(limits) if len(limits) == len(read) and not adapted else None

    def method_class(self, method: str) -> str:
        """data-free, unlabelled, labelled or multi-model."""
        return method_class(self.rows.methods[method].algorithm)


def read(config: Mapping[str, Any]) -> Plan:
    """The checked plan of a run; ValueError says what is wrong, what was expected, and where to fix it."""
    known = {field.alias or name for name, field in Config.model_fields.items()}
    require(config, known, "setting", "the configuration file")
    try:
        run = Config(**config)
        rows = Rows(**{kind: _rows(kind, run.define) for kind in Rows.model_fields})
    except ValidationError as error:
        raise ValueError(f"configuration: {first_error(error)}") from error
    _check_names(run, rows)
    for suite in run.suites:
        rows.suites |= {SUBSET.join([suite, "+".join(t)]): SuiteRow(tasks=t) for t in rows.suites[suite].chosen()}
    plan = Plan(config=run, rows=rows)
    _check_checkpoints(plan)
    return plan


def _rows(kind: str, define: Mapping[Any, Any]) -> dict[str, Any]:
    files = [ROWS / f"{kind}.yaml", *sorted(ROWS.glob(f"{kind}_*.yaml"))]
    rows: dict[str, Any] = {}
    for file in files:
        rows |= yaml.load(file.read_text(encoding="utf-8"), Loader=LOADER) or {}
    return _join(rows, define.get(kind, {}))


def _join(base: Any, change: Any) -> Any:
    if isinstance(base, Mapping) and isinstance(change, Mapping):
        return {**base, **{name: _join(base.get(name), value) for name, value in change.items()}}
    return change


def _check_names(run: Config, rows: Rows) -> None:
    for kind in ("backbones", "checkpoints", "modes", "suites", "methods"):
        require(getattr(run, kind), getattr(rows, kind), kind.removesuffix("s"), f"config/{kind}.yaml")
        _require_once(getattr(run, kind), kind)
    _require_once([str(seed) for seed in run.seeds], "seeds")
    for suite in run.suites:
        row = rows.suites[suite]
        require([*row.tasks, *row.unseen], rows.tasks, "task", f"suite {suite}, config/tasks.yaml")
        _require_pictures(suite, rows)
    if isinstance(run.finetune.lr, dict):
        require(run.finetune.lr, rows.modes, "mode in finetune.lr", "config/modes.yaml")
        if missing := set(run.modes) - set(run.finetune.lr):
            raise ValueError(f"finetune.lr gives no learning rate for mode {sorted(missing)}; add one")
    for kind in ("tasks", "backbones"):
        sources = [s.archive for row in getattr(rows, kind).values() for s in row.sources if s.archive]
        require(sources, rows.archives, f"archive in {kind}", "config/archives.yaml")


def _check_checkpoints(plan: Plan) -> None:
    """Every row of checkpoints that the run names has a model of each task, and no two are of the same place."""
    run, rows, seen = plan.config, plan.rows, set()
    for name in run.checkpoints:
        row, where = rows.checkpoints[name], f"checkpoints {name}, config/checkpoints.yaml"
        if row.backbone not in run.backbones or row.mode not in run.modes or (row.backbone, row.mode) in seen:
            raise ValueError(
                f"checkpoints {name!r} are of {row.backbone}, {row.mode}; expected a backbone and mode of the run, and "
                "one row for each (the configuration file)"
            )
        if rows.modes[row.mode].adapter is not None:
            raise ValueError(f"mode {row.mode!r} has adapters; expected a mode of full fine-tuning ({where})")
        if missing := [task for task in plan.tasks if task not in row.models]:
            raise ValueError(f"no model of {missing}; expected one of each task of the run ({where})")
        seen.add((row.backbone, row.mode))


def _require_pictures(suite: str, rows: Rows) -> None:
    row, corruption = rows.suites[suite], rows.suites[suite].corruption
    for task in [*row.tasks, *row.unseen] if corruption else []:
        if (modality := rows.tasks[task].modality) != "image":
            raise ValueError(
                f"suite {suite!r} has the corruption {corruption!r}, and its task {task!r} is of {modality}; "
                "expected tasks of pictures alone (config/suites.yaml)"
            )


def _require_once(names: Iterable[str], kind: str) -> None:
    names = list(names)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{kind} {twice} are listed more than once; expected each once (the configuration file)")
