"""The rows of models: where weights come from, backbones, fine-tuned models of others, modes of fine-tuning."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from fusion.files import is_system
from fusion.rows import HubName, LocalPath, Row, first_error, hub_ref


class WeightsSource(Row):
    """Where pre-trained weights are: a folder in transformers format, by itself or inside an archive; a hub's model at
    a revision; or an architecture of open_clip with the name of its weights, `pretrained`.

    onnx: a file in the folder that holds a DINOv2 in an ONNX graph instead.
    """

    archive: str | None = None
    folder: LocalPath | None = None
    onnx: LocalPath | None = None
    hub: HubName | None = None
    revision: str | None = None
    open_clip: str | None = None
    pretrained: str | None = None

    @model_validator(mode="after")
    def _is_one_place(self) -> "WeightsSource":
        if sum(place is not None for place in (self.folder, self.hub, self.open_clip)) != 1:
            raise ValueError("a source is a `folder` (of an `archive` or not), `hub` or `open_clip`: give one of them")
        if (self.pretrained is None) != (self.open_clip is None):
            raise ValueError("`open_clip` and `pretrained` are given together")
        return self

    def available(self) -> bool:
        """A local folder if it is there; the others can be had wherever there is a network, or a copy of them."""
        return self.archive is not None or self.folder is None or Path(self.folder).is_dir()

    def paths(self) -> list[str]:
        """The local files of the model and of a text tower in its subfolder `text`, no hidden or system files; none
        of other sources."""
        if self.hub is not None and Path(self.hub).is_dir():
            return [self.hub]
        if self.archive is not None or self.folder is None:
            return []
        folder = Path(self.folder)
        files = (path for path in (*folder.iterdir(), *folder.glob("text/*")) if path.is_file())
        return sorted(str(path) for path in files if not is_system(path.name))

    def ref(self) -> Path | None:
        """The file in the hub's cache that says which commit is read; None where the row itself says so."""
        return hub_ref("models", self.hub, self.revision)


class SentenceEncoderOptions(Row):
    """max_length: tokens a text is cut to; logit_scale: factor of the cosine similarities; overrides: values that
    replace those of the model's config.json."""

    max_length: int = Field(ge=1)
    logit_scale: float = Field(gt=0)
    overrides: dict[str, Any] = {}


class ClipOptions(Row):
    """logit_scale: factor of the cosine similarities."""

    logit_scale: float = Field(gt=0)


class DinoV2Options(ClipOptions):
    """image_size: side of a picture in pixels, if not the model's own."""

    image_size: int | None = Field(default=None, ge=1)


OPTIONS: dict[str, type[Row]] = {
    "sentence_encoder": SentenceEncoderOptions,
    "clip": ClipOptions,
    "dinov2": DinoV2Options,
}


class ModelSize(Row):
    """How large a transformer is, to reckon what a run costs before anything is downloaded.

    parameters: of the network; trained: those that full fine-tuning trains; width, layers: of the transformer; tokens:
    of an input, with the class token (of texts, the most); side: of a picture in pixels.
    """

    parameters: int = Field(ge=1)
    trained: int = Field(ge=1)
    width: int = Field(ge=1)
    layers: int = Field(ge=1)
    tokens: int = Field(ge=1)
    side: int | None = Field(default=None, ge=1)


class BackboneRow(Row):
    """A pre-trained model. `frozen`: patterns of parameters that no mode trains; `options`: its class's own.

    compile: whether torch.compile makes fine-tuning and evaluation faster, after a minute or so a job. size: what
    `fusion check` reckons with; no result depends on it.
    """

    kind: Literal["sentence_encoder", "clip", "dinov2"]
    sources: list[WeightsSource] = Field(min_length=1)
    frozen: list[str] = []
    target_modules: list[str] = Field(min_length=1)
    options: dict[str, Any] = Field(default={}, validate_default=True)
    compile: bool = Field(default=False, exclude=True)  # so that what is prepared is the same either way
    size: ModelSize | None = Field(default=None, exclude=True)

    @field_validator("options")
    @classmethod
    def _of_its_kind(cls, options: dict[str, Any], others: ValidationInfo) -> dict[str, Any]:
        if "kind" not in others.data:  # that is the error to report
            return options
        try:
            return OPTIONS[others.data["kind"]](**options).model_dump()
        except ValidationError as error:
            raise ValueError(first_error(error)) from error

    def source(self) -> WeightsSource:
        """The first source that is available."""
        found = next((source for source in self.sources if source.available()), None)
        if found is None:
            raise ValueError(f"none of the folders {[s.folder for s in self.sources]} exists (config/backbones.yaml)")
        return found


class CheckpointsRow(Row):
    """Models that somebody has fine-tuned on tasks: those of one backbone in one mode, by task."""

    backbone: str
    mode: str
    models: dict[str, WeightsSource] = Field(min_length=1)

    @model_validator(mode="after")
    def _are_folders(self) -> "CheckpointsRow":
        for task, source in self.models.items():
            if source.archive or source.onnx or source.open_clip:
                raise ValueError(f"models.{task}: expected `hub`, or a `folder` in transformers format")
        return self


class Adapter(Row):
    """LoRA's shape. init_lora_weights is PEFT's: true draws A and leaves B zero, false draws both."""

    r: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    init_lora_weights: bool | Literal["gaussian"] = True


class ModeRow(Row):
    """A way of fine-tuning: all parameters, or an adapter, linearized or not; and where its models are merged."""

    adapter: Adapter | None = None
    linearized: bool = False
    spaces: list[Literal["weight", "adapter"]] = ["weight"]

    @model_validator(mode="after")
    def _adapters_only(self) -> "ModeRow":
        if self.adapter is None and (self.linearized or self.spaces != ["weight"]):
            raise ValueError("without an adapter, `linearized` must be false and `spaces` [weight]")
        return self
