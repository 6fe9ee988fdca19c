"""The accuracies that papers and checkpoint collections report, in this project's names: config/published/*.csv."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, ValidationError, model_validator

from fusion.protocol import PROTOCOL
from fusion.rows import Row, first_error

FOLDER = Path(__file__).parent.parent / "config" / "published"


class PublishedRow(Row):
    """One accuracy of a model on a task, between 0 and 1; or, with `task` empty, its average over a suite's tasks.

    n_tasks: how many tasks it is over; family: which fine-tuned models it is of; setting: what the paper says was
    chosen by hand; chosen_on: 'test' where it was chosen there; suite and space as in a run; protocol: 'clip' with
    CLIP's normalization and all templates of a task, 'peta' without normalization, with one prompt and squashed
    pictures; source: the file it was read from. ValueError for a task and n_tasks that do not go together.
    """

    paper: str
    family: str
    backbone: str
    mode: str
    space: Literal["weight", "adapter"]
    suite: str
    method: str
    task: str
    n_tasks: PositiveInt = 1
    value: float = Field(ge=0, le=1)
    setting: str
    chosen_on: Literal["", "test"]
    protocol: Literal["clip", "peta"]
    source: str

    @model_validator(mode="after")
    def _says_what_it_is_over(self) -> Self:
        if (self.task == "") != (self.n_tasks > 1):
            raise ValueError(f"got task {self.task!r} and n_tasks {self.n_tasks}, expected a task, or '' and 2 or more")
        return self


def read_published(backbones: Iterable[str], folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The rows of all files that are of one of the backbones; ValueError naming the file and line of a wrong one."""
    wanted, found = set(backbones), []
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as lines:
            for number, values in enumerate(csv.DictReader(lines), start=2):
                try:
                    row = PublishedRow(**values)  # type: ignore[arg-type]
                except (TypeError, ValidationError) as error:
                    what = first_error(error) if isinstance(error, ValidationError) else str(error)
                    raise ValueError(f"{path} line {number}: {what}") from error
                if row.backbone in wanted:
                    found.append(row.model_dump())
    return found


def zero_shot(rows: Iterable[Mapping[str, Any]], backbone: str) -> dict[str, list[float]]:
    """The published accuracies of a pre-trained model by task, of this project's protocol alone."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row["backbone"], row["method"], row["protocol"]) == (backbone, "pretrained", PROTOCOL) and row["task"]:
            found.setdefault(row["task"], []).append(row["value"])
    return found
