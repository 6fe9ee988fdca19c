"""How a task's files are read: the formats of config/tasks.yaml."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

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


class ParquetFormat(Row):
    """Two columns of a Parquet file; labels are class names by what the file says of them, else compared as text.

    Compared as text, a whole number is '0' or '1', whatever its type, and a truth value 'true' or 'false'.
    """

    kind: Literal["parquet"]
    text: str
    label: str


class JsonLinesFormat(Row):
    """One JSON object a line, gzipped or not; a label that is a number or a truth value is written as JSON writes it.

    A number that is whole is written without a fraction: 1.0 is '1'.
    """

    kind: Literal["json_lines"]
    text: str
    label: str


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
    """A split of a hub's data set: the names of its columns, that of the inputs being `text` or, by default, `image`.

    Labels are class names, or numbers of names of the data set's own; the keys of `classes` are these names in any
    order. Where no name is a key, the numbers are indices in the order of `classes`. Labels of texts that are numbers
    without names are compared with the keys as text.
    decode: the pictures that are looked at before a task is written, all or the first of each class.
    """

    kind: Literal["hub"]
    image: str | None = "image"
    text: str | None = None
    label: str = "label"
    decode: Literal["all", "first"] = "all"

    @model_validator(mode="before")
    @classmethod
    def _text_takes_the_place_of_the_default_image(cls, row: Any) -> Any:
        is_text = isinstance(row, Mapping) and row.get("text") is not None and "image" not in row
        return {**row, "image": None} if is_text else row

    @model_validator(mode="after")
    def _has_one_input(self) -> Self:
        if (self.image is None) == (self.text is None):
            raise ValueError(f"got `image` {self.image!r} and `text` {self.text!r}, expected one of the two columns")
        if self.text is not None and self.decode != "all":
            raise ValueError(f"`decode` {self.decode!r} is of pictures; remove it beside `text`")
        return self

    @model_serializer(mode="wrap")
    def _without_the_other_column(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # the folders of a task are named after its row: those of pictures were so before there were texts
        return {key: value for key, value in dump(self).items() if value is not None}

    @property
    def column(self) -> str:
        """That of the inputs."""
        return str(self.image if self.text is None else self.text)

    @property
    def modality(self) -> Literal["text", "image"]:
        """That of the inputs."""
        return "image" if self.text is None else "text"


ColumnsFormat = ParquetFormat | JsonLinesFormat
TextFormat = LinesFormat | TableFormat | ColumnsFormat
ImageFormat = PixelsFormat | ArraysFormat | FolderFormat
Format = Annotated[TextFormat | ImageFormat | HubFormat, Field(discriminator="kind")]
