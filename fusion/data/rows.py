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


class PixelsFormat(Row):
    """Grey pictures as a comma-separated table, gzipped or not: a picture's values row by row, and its class last.

    height, width: in pixels; maximum: the value of white.
    """

    kind: Literal["pixels"]
    height: PositiveInt
    width: PositiveInt
    maximum: PositiveInt = 255


class ArraysFormat(Row):
    """Pictures and classes as two arrays of bytes, gzipped or not: IDX files, or pickles of numpy arrays alone.

    images, labels: what stands for `{}` in the file's name; pictures are (n, height, width) or (n, height, width, 3).
    """

    kind: Literal["arrays"]
    images: str
    labels: str


class FolderFormat(Row):
    """Picture files in one subfolder a class, named as the classes; what other files are there is not read."""

    kind: Literal["image_folder"]


class HubFormat(Row):
    """A split of a hub's data set: the names of its columns. Labels are class indices in the order of `classes`."""

    kind: Literal["hub"]
    image: str = "image"
    label: str = "label"


TextFormat = LinesFormat | TableFormat
ImageFormat = PixelsFormat | ArraysFormat | FolderFormat | HubFormat
Format = Annotated[TextFormat | ImageFormat, Field(discriminator="kind")]


class SourceRow(Row):
    """Where a task's files are; `all` is split by us.

    archive: members of an archive of config/archives.yaml; folder: files in a local folder; package: files of an
    installed Python package; hub: splits of a hub's data set at a revision, `config` being its configuration there.
    """

    archive: str | None = None
    folder: str | None = None
    package: str | None = None
    hub: str | None = None
    revision: str | None = None
    config: str | None = None
    files: dict[Literal["all", "train", "val", "test"], str]
    format: Format

    @model_validator(mode="after")
    def _is_one_place_and_whole(self) -> Self:
        places = [self.archive, self.folder, self.package, self.hub]
        if sum(place is not None for place in places) != 1:
            raise ValueError("a source is an `archive`, a `folder`, a `package` or `hub`: give exactly one of them")
        if (self.hub is not None) != isinstance(self.format, HubFormat):
            raise ValueError(f"format {self.format.kind!r}: `hub` sources have the format 'hub', and no others do")
        if self.hub is None and (self.revision or self.config):
            raise ValueError("`revision` and `config` are of `hub` sources alone")
        if set(self.files) not in ({"all"}, {"train", "test"}, {"train", "val", "test"}):
            raise ValueError(f"files {sorted(self.files)}: expected `all`, or `train` and `test` (and `val`)")
        return self

    @property
    def place(self) -> str:
        """Where it is, in a word for messages."""
        return str(self.archive or self.folder or self.package or self.hub)

    def paths(self) -> list[str]:
        """The local files, or folders, that are read; none of an archive, a package or a hub."""
        if self.folder is None:
            return []
        if isinstance(self.format, FolderFormat):  # a folder's time tells of its own files, not of those below
            folders = [Path(self.folder) / file for file in self.files.values()]
            return sorted(str(path) for folder in folders for path in folder.glob("*/"))
        names = [self.format.images, self.format.labels] if isinstance(self.format, ArraysFormat) else [""]
        return [f"{self.folder}/{file.replace('{}', name)}" for file in self.files.values() for name in names]


class TaskRow(Row):
    """A classification task: where its data is, and what its classes are called in a prompt.

    `classes` maps a value in the data to its words; the order is the class index. `prompt`: one template with `{}`
    for the words, or several, whose embeddings are averaged. `max_examples` caps splits. `whole_test`: the official
    test split stays as it is, repeated inputs included, so that accuracies compare with published ones; what it
    shares with the others is left out of those all the same.
    """

    modality: Literal["text", "image"]
    sources: list[SourceRow] = Field(min_length=1)
    classes: dict[str, str] = Field(min_length=2)
    prompt: str | list[str]
    max_examples: dict[Literal["train", "val", "test"], PositiveInt] = {}
    split_seed: int = 0
    whole_test: bool = False

    def source(self) -> SourceRow:
        """The first source that can be read: a folder if it exists, all others always can.

        ValueError if there is none.
        """
        for source in self.sources:
            if source.folder is None or Path(source.folder).is_dir():
                return source
        folders = [source.folder for source in self.sources]
        raise ValueError(f"none of the folders {folders} exists; add a source (config/tasks.yaml)")

    @property
    def prompts(self) -> list[str]:
        """The templates, one or more."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @model_validator(mode="after")
    def _formats_are_of_the_modality(self) -> Self:
        for source in self.sources:
            if (self.modality == "image") != isinstance(source.format, ImageFormat):
                raise ValueError(f"modality {self.modality!r}: format {source.format.kind!r} is not of it")
        return self

    @model_validator(mode="after")
    def _prompts_tell_the_classes_apart(self) -> Self:
        for prompt in self.prompts:
            if prompt.count("{}") != 1:
                raise ValueError(f"prompt {prompt!r}: expected exactly one {{}} for the class's words")
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
