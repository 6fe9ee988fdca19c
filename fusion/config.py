"""A run's configuration file. No torch here: Snakemake reads this on every start."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, field_validator

from fusion.hyperparameters import Rate
from fusion.rows import LocalPath, Row

Kind = Literal["archives", "tasks", "backbones", "checkpoints", "modes", "suites", "methods"]


class Finetune(Row):
    """How each task is fine-tuned; `lr` is one rate, or one a mode."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: Rate | dict[str, Rate]
    weight_decay: float = Field(default=0.1, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    checkpoint_every: int = Field(default=100, ge=1)

    def settings(self, mode: str) -> dict[str, Any]:
        """The settings of one mode, with its learning rate."""
        lr = self.lr[mode] if isinstance(self.lr, dict) else self.lr
        return self.model_dump() | {"lr": lr}


class Fuse(Row):
    """Which unlabelled inputs adaptive methods see, in which batches, and how many examples choose from a grid.

    statistics_examples: of each task's training split, that Fisher diagonals and Gram matrices are taken on;
    loss_examples: of each, that a labelled search sees. fisher_labels: over the labels of an example, Fisher
    information is the exact expectation, with a backward pass a class less one, or that of one label drawn from the
    model's own prediction.
    """

    adapted_on: Literal["train", "val", "test"] = "val"
    batch_size: int = Field(default=16, ge=1)
    select_examples: int | None = Field(default=None, ge=1)
    statistics_examples: int = Field(default=256, ge=1)
    loss_examples: int = Field(default=16, ge=1)
    fisher_labels: Literal["exact", "sampled"] = "exact"


class Pixels(Row):
    """Which pictures are kept as a model takes them, three bytes a pixel, beside those of val and test that are read.

    train_examples: the first of each task's training split; fine-tuning decodes the others every time it reads them.
    """

    train_examples: int = Field(default=0, ge=0)


class Evaluate(Row):
    """How many examples of a split are scored (all if not given), and in which batches.

    cross_task: whether individual models are scored on the other tasks of a suite too, for the table `per_task`; no
    average has them.
    """

    batch_size: int = Field(default=32, ge=1)
    examples: int | None = Field(default=None, ge=1)
    cross_task: bool = False


class Config(Row):
    """A run. Names refer to rows; `define` adds rows or changes some of a row's values for this run alone.

    checkpoints: fine-tuned models of others, that take the place of the run's own. multitask: also fine-tune one model
    on all tasks of a suite at once, for reference. keep_fused: whether fused models stay once they are scored; those of
    many suites fill a disk. hash_sources: before each run, read all local source files whole to see whether they
    changed; otherwise large files, and the files of folders of pictures, count by size and time. rates: the row of
    config/rates.yaml, a machine, that `fusion check` and the jobs' time limits reckon with.
    """

    run: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    title: str = ""
    results: LocalPath = "results"
    seeds: list[NonNegativeInt] = Field(min_length=1)
    backbones: list[str] = Field(min_length=1)
    modes: list[str] = Field(min_length=1)
    suites: list[str] = Field(min_length=1)
    methods: list[str] = []
    checkpoints: list[str] = []
    multitask: bool = True
    keep_fused: bool = True
    hash_sources: bool = False
    rates: str = "cpu"
    finetune: Finetune
    fuse: Fuse = Field(default_factory=Fuse)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    pixels: Pixels = Field(default_factory=Pixels)
    define: dict[Kind, dict[str, Any]] = {}

    @field_validator("results")
    @classmethod
    def _without_braces(cls, results: str) -> str:
        if "{" in results or "}" in results:
            raise ValueError(f"got {results!r}, and Snakemake takes braces for wildcards; name another folder")
        return results

    @field_validator("run")
    @classmethod
    def _not_shared(cls, run: str) -> str:
        if run == "shared":
            raise ValueError("'shared' is the folder of what all runs share; name the run something else")
        return run


def schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, for editors (config/schema.json)."""
    return Config.model_json_schema()
