"""The stages on the tiny world, one call each and in this process: what Snakemake would run, without Snakemake."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tiny

from fusion.backbones import Backbone, open_backbone
from fusion.job import Job, run
from fusion.modes import attach, freeze
from fusion.pipelines import needs, parts
from fusion.plan import Plan, read
from fusion.rows import MethodRow

TASKS = list(tiny.TASKS)
BOTH = {"r": 4, "alpha": 8, "init_lora_weights": False}  # draws A0 and B0
MODES = {
    "lora_both": {"adapter": BOTH},
    "l_lora_both": {"adapter": BOTH, "linearized": True},
    "lora_dropout": {"adapter": {"r": 4, "alpha": 8, "dropout": 0.3}},
}
ADAPTERS = ["lora", "l_lora", *MODES]


@dataclass(frozen=True)
class World:
    """Where the artifacts of the tiny world are; made by `prepare`."""

    folder: Path
    plan: Plan

    @property
    def model(self) -> Path:
        """θ0."""
        return self.folder / "model"

    def data(self, task: str) -> Path:
        """A prepared task."""
        return self.folder / "prepared" / task

    def head(self, task: str) -> Path:
        """Its class embeddings."""
        return self.folder / "heads" / f"{task}.safetensors"

    def init(self, mode: str, seed: int = 0) -> Path | None:
        """What an adapter mode adds to θ0."""
        return self.folder / "init" / mode / f"seed{seed}" if mode in ADAPTERS else None

    def finetuned(self, mode: str, task: str) -> Path:
        """The model of a task, fine-tuned with the settings of tiny.yaml; made when first asked for."""
        folder = self.folder / "finetuned" / mode / task
        if not folder.is_dir():
            run(self.finetune_job(mode, task, folder))
        return folder

    def backbone(self) -> Backbone:
        """The pre-trained model, anew."""
        return open_backbone(self.model, self.backbone_row)

    def attached(self, mode: str, dtype: Any = None) -> tuple[Backbone, dict[str, Any]]:
        """A model in a mode at its initial value, and the parameters that train."""
        backbone, row = self.backbone(), self.plan.mode("tiny", mode)
        backbone.module.to(dtype)
        trained = freeze(backbone.module, row["frozen"])
        init = self.init(mode)
        return backbone, attach(backbone.module, row, init) if init else trained

    @property
    def frozen(self) -> list[str]:
        """The patterns of what no mode trains."""
        return self.plan.rows.backbones["tiny"].frozen

    @property
    def backbone_row(self) -> dict[str, Any]:
        """What stages need of the backbone's row."""
        return self.plan.rows.backbones["tiny"].model_dump(include={"kind", "options"})

    def finetune_job(self, mode: str, task: str, folder: Path, seed: int = 0, **recipe: Any) -> Job:
        """The job that fine-tunes one task; `recipe` replaces values of the fine-tuning settings."""
        settings = {
            "backbone": self.backbone_row,
            "mode": self.plan.mode("tiny", mode),
            "finetune": self.plan.config.finetune.settings("full") | {"lr": learning_rate(mode)} | recipe,
            "seed": seed,
        }
        inputs: dict[str, Any] = {"model": str(self.model), "data": str(self.data(task)), "heads": str(self.head(task))}
        inputs["init"] = [str(path) for path in [self.init(mode, seed)] if path]
        stage, wildcards = "fusion.stages.finetune:finetune", {"task": task, "mode": mode, "seed": str(seed)}
        params = {"settings": settings, "code": "code"}
        return Job(stage, inputs, {"model": str(folder)}, params, {"backbone": "tiny", **wildcards})

    def suite_job(self, stage: str, output: dict[str, Path], mode: str, **settings: Any) -> Job:
        """A job on all tasks: inputs, wildcards and parameters that fuse, evaluate and similarity share."""
        inputs: dict[str, Any] = {
            "model": str(self.model),
            "data": [str(self.data(task)) for task in TASKS],
            "heads": [str(self.head(task)) for task in TASKS],
            "init": [str(path) for path in [self.init(mode)] if path],
            "finetuned": [str(self.finetuned(mode, task)) for task in TASKS],
        }
        shared = {"backbone": self.backbone_row, "tasks": TASKS, "n_tasks": len(TASKS), "unseen": [], "seed": 0}
        wildcards = {"backbone": "tiny", "mode": mode, "space": settings.get("space", "weight"), "suite": "tiny"}
        wildcards |= {"method": settings.get("algorithm", settings.get("method", "")), "seed": "0"}
        params = {"settings": shared | settings, "code": "code"}
        return Job(stage, inputs, {name: str(path) for name, path in output.items()}, params, wildcards)

    def fuse_job(self, folder: Path, mode: str, algorithm: str, space: str = "weight", **hyper: Any) -> Job:
        """The job that fuses all tasks' models by an algorithm, in a folder `model` and a file `selection`."""
        output = {"model": folder / "model"}
        output |= {name: folder / f"{name}.parquet" for name in ("selection", "diagnostics")}
        adaptive = any("objective" in needs(part) for part in parts(algorithm))
        grid = MethodRow(algorithm=algorithm, hyperparameters=hyper).grid()
        recipe = {"space": space, "algorithm": algorithm, "grid": grid, "frozen": self.frozen}
        recipe |= {"adapt": {"adapted_on": "val", "batch_size": 4} if adaptive else None}
        recipe |= {"select": {"limit": 20, "batch_size": 8}, "reason": "", "labelled": {}}
        return self.suite_job("fusion.stages.fuse:fuse", output, mode, **recipe)


def learning_rate(mode: str) -> float:
    """The tiny learning rate of a mode or of the mode it is a variant of."""
    return tiny.FINETUNE["lr"]["full" if mode == "full" else "lora"]


def changed(job: Job, **settings: Any) -> Job:
    """The job with other settings."""
    return replace(job, params=job.params | {"settings": job.params["settings"] | settings})


def prepare(folder: Path, **changes: Any) -> World:
    """The tiny world after the stages that come before fine-tuning."""
    plan = read(tiny.config(tiny.make(folder), define={"modes": MODES}, **changes))
    world = World(folder, plan)
    row = plan.rows.backbones["tiny"]
    source = {"row": world.backbone_row, "source": row.source().model_dump()}
    model, one = {"model": str(world.model)}, {"backbone": world.backbone_row}
    run(Job("fusion.stages.pretrained:prepare_backbone", {}, model, {"settings": source}))
    for task in TASKS:
        settings, data = plan.rows.tasks[task].model_dump() | {"name": task}, {"data": str(world.data(task))}
        run(Job("fusion.stages.prepare:prepare_task", {}, data, {"settings": settings}))
        head = {"head": str(world.head(task))}
        run(Job("fusion.stages.pretrained:make_head", model | data, head, {"settings": one}))
    for mode in ADAPTERS:
        make_init(world, mode, 0)
    return world


def make_init(world: World, mode: str, seed: int, folder: Path | None = None) -> Path:
    """The folder of a mode's A0 and B0 for a seed."""
    target = folder or world.init(mode, seed)
    settings = {"backbone": world.backbone_row, "mode": world.plan.mode("tiny", mode), "seed": seed}
    output = {"init": str(target)}
    run(Job("fusion.stages.pretrained:make_init", {"model": str(world.model)}, output, {"settings": settings}))
    return Path(str(target))
