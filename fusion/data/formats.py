"""How a task's files are read: the formats of config/tasks.yaml."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fusion.rows import Row


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
    """Picture files in one subfolder a class, named as the classes; other files there are counted and not read.

    decode: the pictures that are looked at before a task is written, all or the first of each class.
    """

    kind: Literal["image_folder"]
    decode: Literal["all", "first"] = "all"


class HubFormat(Row):
    """A split of a hub's data set: the names of its columns.

    Labels are class names, or numbers of names of the data set's own; the keys of `classes` are these names in any
    order. Where no name is a key, the numbers are indices in the order of `classes`.
    decode: the pictures that are looked at before a task is written, all or the first of each class.
    """

    kind: Literal["hub"]
    image: str = "image"
    label: str = "label"
    decode: Literal["all", "first"] = "all"


TextFormat = LinesFormat | TableFormat
ImageFormat = PixelsFormat | ArraysFormat | FolderFormat | HubFormat
Format = Annotated[TextFormat | ImageFormat, Field(discriminator="kind")]
