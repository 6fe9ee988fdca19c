"""What all rows of configuration share, and those of suites and methods."""

import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fusion.hyperparameters import fields, hyperparameters
from fusion.pipelines import algorithms, check_order, parts, prefix


def one_spelling(path: str) -> str:
    """The path without what makes no other place of it: 'data//a/./' is 'data/a'; `~` is the home folder."""
    return str(Path(os.path.expanduser(path)))


def folder_or_hub(name: str) -> str:
    """The same of what is a name of a hub where no such folder is there: './a' stays a folder."""
    return ("./" if name.startswith("./") else "") + one_spelling(name)


LocalPath = Annotated[str, AfterValidator(one_spelling)]
HubName = Annotated[str, AfterValidator(folder_or_hub)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")]  # of a row: it becomes a part of paths


def require(names: Iterable[str], known: Iterable[str], kind: str, where: str) -> None:
    """Nothing; ValueError with the nearest known name for one that is not known, and where to fix it."""
    known = list(known)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(sorted(known))}"
            raise ValueError(f"unknown {kind} {name!r}; {hint} ({where})")


def first_error(error: ValidationError) -> str:
    """What is wrong first in a row: where, what was got, what was expected."""
    found = error.errors()[0]
    where, message = "".join(f"{part}." for part in found["loc"]), found["msg"].removeprefix("Value error, ")
    got = "" if found["type"] == "value_error" else f"got {found['input']!r}, "
    return f"{where[:-1]}: {got}{message}" if where else f"{got}{message}"


class Row(BaseModel):
    """A row of configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            require(values, cls.model_fields, "key", "the configuration file, or the row's file in config/")
        return values


def hub_ref(kind: Literal["datasets", "models"], name: str | None, revision: str | None) -> Path | None:
    """The file in the hub's cache that says which commit a branch or tag is; None of a pinned commit, or of no hub."""
    if name is None or Path(name).is_dir() or re.fullmatch("[0-9a-f]{40}", revision or ""):
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE, f"{kind}--{name.replace('/', '--')}", "refs", revision or "main")


Corruption = Literal[
    "motion_blur", "impulse_noise", "gaussian_noise", "pixelate", "spatter", "contrast", "jpeg_compression"
]


class SuiteRow(Row):
    """The tasks that are merged into one model, and how it is tested.

    unseen: tasks that it is only tested on; subsets: how many of the tasks are also merged by themselves, every
    choice of so many of them. corruption and severity of the test pictures are those of the benchmark of common
    corruptions (arXiv:1903.12261): what trains and what chooses stays clean, and methods that adapt on test inputs see
    the corrupted ones.
    """

    tasks: list[str] = Field(min_length=1)
    unseen: list[str] = []
    subsets: list[int] = []
    corruption: Corruption | None = None
    severity: int = Field(default=2, ge=1, le=5)

    @property
    def condition(self) -> str:
        """What the test pictures are under: '' where they are clean, else as 'motion_blur-2'."""
        return f"{self.corruption}-{self.severity}" if self.corruption else ""

    @model_validator(mode="after")
    def _each_once(self) -> "SuiteRow":
        names = [*self.tasks, *self.unseen]
        if twice := sorted({task for task in names if names.count(task) > 1}):
            raise ValueError(f"tasks {twice} are listed more than once; expected each task once (config/suites.yaml)")
        return self

    @model_validator(mode="after")
    def _subsets_are_smaller(self) -> "SuiteRow":
        if wrong := [size for size in self.subsets if not 1 <= size < len(self.tasks)]:
            raise ValueError(
                f"subsets of {wrong} of {len(self.tasks)} tasks; expected 1 to {len(self.tasks) - 1}: all of them are "
                "merged anyway (config/suites.yaml)"
            )
        return self

    def chosen(self) -> list[list[str]]:
        """The tasks of every subset."""
        return [list(found) for size in sorted(set(self.subsets)) for found in combinations(self.tasks, size)]


class MethodRow(Row):
    """An algorithm, or several joined by '+', with hyper-parameters; a list is a grid, from which validation data
    chooses.

    hyperparameters: by name, or as 'dare.density' where there are several algorithms. spaces: where to merge
    adapters, all spaces of the mode if not given. adapted_on: the split whose unlabelled inputs an adaptive method
    sees; that of the run if not given.
    """

    algorithm: str
    hyperparameters: dict[str, Any] = {}
    spaces: list[Literal["weight", "adapter"]] | None = None
    adapted_on: Literal["train", "val", "test"] | None = None

    @model_validator(mode="after")
    def _known(self) -> "MethodRow":
        require(parts(self.algorithm), algorithms(), "algorithm", "fusion/methods")
        check_order(self.algorithm)
        known = fields(self.algorithm)
        require(self.hyperparameters, known, f"hyper-parameter of {self.algorithm}", "config/methods.yaml")
        try:
            self.grid()
        except ValidationError as error:
            raise ValueError(f"{self.algorithm}: {first_error(error)} (config/methods.yaml)") from error
        return self

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the listed values, with the defaults filled in, as the method's types: YAML reads
        1e-3 as text."""
        rows: list[dict[str, Any]] = [{}]
        for name, default in fields(self.algorithm).items():
            values = self.hyperparameters.get(name, default)
            rows = [
                {**row, name: value} for row in rows for value in (values if isinstance(values, list) else [values])
            ]
        found = [self._typed(row) for row in rows]
        if not found or any(row in found[:i] for i, row in enumerate(found)):
            raise ValueError(
                f"{self.algorithm}: expected a grid of at least one value, each once (config/methods.yaml)"
            )
        return found

    def _typed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        typed: dict[str, Any] = {}
        for part in parts(self.algorithm):
            start, model = prefix(self.algorithm, part), hyperparameters(part)
            checked = model(**{name: row[start + name] for name in model.model_fields})
            typed |= {start + name: value for name, value in checked.model_dump().items()}
        return typed
