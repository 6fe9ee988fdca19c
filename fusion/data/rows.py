"""The rows of config/archives.yaml and config/tasks.yaml."""

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from fusion.data.columns import same_text
from fusion.data.formats import ArraysFormat, FolderFormat, Format, HubFormat, ImageFormat, TableFormat
from fusion.rows import HubName, LocalPath, Row, hub_ref

SIGNS = ["negative", "positive"]  # the classes of a task whose label is the sign of a score, in this order


class ArchiveRow(Row):
    """A pinned file of a package index: what is read is data inside the wheel, which is never installed.

    index: whose package it is, a wheel of `pip` or a Debian package of `apt`.
    """

    package: str = Field(min_length=1)
    version: str = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    index: Literal["pip", "apt"] = "pip"

    def available(self) -> bool:
        """Whether it can be fetched and read here: a Debian package needs Debian's tools, a wheel nothing."""
        return self.index == "pip" or all(shutil.which(tool) for tool in ("apt-get", "dpkg-deb"))

    def file(self) -> str:
        """Its name among the archives, after that of its row: no two versions or contents have the same."""
        version, ending = self.version.replace("-", "_"), {"pip": "whl", "apt": "deb"}[self.index]
        return f"{version}.{self.sha256[:8]}.{ending}"


class SourceRow(Row):
    """Where a task's files are; `all` is split by us.

    archive: members of an archive of config/archives.yaml; folder: files in a local folder; package: files of an
    installed Python package; hub: splits of a hub's data set at a revision, `config` being its configuration there.
    """

    archive: str | None = None
    folder: LocalPath | None = None
    package: str | None = None
    hub: HubName | None = None
    revision: str | None = None
    config: str | None = None
    files: dict[Literal["all", "train", "val", "test"], LocalPath]
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
        """The local files and folders that are read; none of an archive, or of a data set that only a hub has.

        ValueError where the Python package is not installed.
        """
        if self.hub is not None:
            return [self.hub] if Path(self.hub).is_dir() else []
        if self.package is not None:
            return [str(package_folder(self.package) / file) for file in self.files.values()]
        if self.folder is None:
            return []
        if isinstance(self.format, FolderFormat):
            return [f"{self.folder}/{file}" for file in self.files.values()]
        names = [self.format.images, self.format.labels] if isinstance(self.format, ArraysFormat) else [""]
        return [f"{self.folder}/{file.replace('{}', name)}" for file in self.files.values() for name in names]

    def ref(self) -> Path | None:
        """The file in the hub's cache that says which commit is read; None where the row itself says so."""
        return hub_ref("datasets", self.hub, self.revision)


def package_folder(package: str) -> Path:
    """The folder of a Python package, which is not imported; ValueError where it is not installed."""
    root, *rest = package.split(".")
    spec = find_spec(root)
    folders = (spec.submodule_search_locations if spec else None) or ()
    for folder in folders:
        return Path(folder, *rest)
    raise ValueError(f"no Python package {root!r}; install it, or add a source (config/tasks.yaml)")


class TaskRow(Row):
    """A classification task: where its data is, and what its classes are called in a prompt.

    `classes` maps a value in the data to its words; the order is the class index. `prompt`: one template with `{}`
    for the words, or several, whose embeddings are averaged. `max_examples` caps splits. `whole_test`: the official
    test split stays as it is, repeated inputs included, so that accuracies compare with published ones; what it
    shares with the others is left out of those all the same. `examples` of each split once prepared, before any cap,
    and `prepared_mb`, what they then take on disk, are what `fusion check` reckons with; no result depends on them.
    """

    modality: Literal["text", "image"]
    sources: list[SourceRow] = Field(min_length=1)
    classes: dict[str, str] = Field(min_length=2)
    prompt: str | list[str]
    max_examples: dict[Literal["train", "val", "test"], PositiveInt] = {}
    split_seed: int = 0
    whole_test: bool = False
    examples: dict[Literal["train", "val", "test"], PositiveInt] = Field(default={}, exclude=True)
    prepared_mb: float | None = Field(default=None, gt=0, exclude=True)

    def source(self, archives: Mapping[str, ArchiveRow] | None = None) -> SourceRow:
        """The first source that can be read: a folder if it exists, an archive if this machine can open it; a hub's
        data set and a Python package always can.

        archives: the rows of config/archives.yaml; one that is not among them counts as there. ValueError if no
        source can be read.
        """
        for source in self.sources:
            row = (archives or {}).get(source.archive or "")
            if (source.folder is None or Path(source.folder).is_dir()) and (row is None or row.available()):
                return source
        if folders := [source.folder for source in self.sources if source.folder is not None]:
            raise ValueError(f"none of the folders {folders} exists; add a source (config/tasks.yaml)")
        names = [source.archive for source in self.sources]
        raise ValueError(f"{names} are Debian packages, and apt-get or dpkg-deb is not on the PATH; add a source")

    @property
    def prompts(self) -> list[str]:
        """The templates, one or more."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @model_validator(mode="after")
    def _formats_are_of_the_modality(self) -> Self:
        for form in (source.format for source in self.sources):
            if isinstance(form, HubFormat) and form.modality != self.modality:
                raise ValueError(
                    f"modality {self.modality!r}: format 'hub' has the column `{form.modality}: {form.column}`, "
                    f"expected `{self.modality}`, the name of the column of inputs"
                )
            if not isinstance(form, HubFormat) and (self.modality == "image") != isinstance(form, ImageFormat):
                raise ValueError(f"modality {self.modality!r}: format {form.kind!r} is not of it")
        return self

    @model_validator(mode="after")
    def _prompts_tell_the_classes_apart(self) -> Self:
        for prompt in self.prompts:
            if prompt.count("{}") != 1:
                raise ValueError(f"prompt {prompt!r}: expected exactly one {{}} for the class's words")
        words = [same_text(words) for words in self.classes.values()]
        if same := [given for given, w in zip(self.classes.values(), words, strict=True) if words.count(w) > 1]:
            raise ValueError(
                f"classes with the same words {same}: a prompt must tell the classes apart, and many models do not "
                "tell capitals from small letters"
            )
        if empty := [key for key, w in zip(self.classes, words, strict=True) if not w]:
            raise ValueError(f"classes {empty} have no words; expected what a prompt calls them")
        return self

    @model_validator(mode="after")
    def _signs_are_negative_then_positive(self) -> Self:
        formats = [source.format for source in self.sources]
        signed = any(isinstance(f, TableFormat) and f.min_magnitude is not None for f in formats)
        if signed and list(self.classes) != SIGNS:
            raise ValueError(f"min_magnitude makes the classes {SIGNS}, got {list(self.classes)}")
        return self
