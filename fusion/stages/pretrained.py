"""What every mode starts from: pre-trained weights, class heads, and the adapters' initial value."""

import shutil
import tempfile
from pathlib import Path

from fusion.artifacts import digest, new_folder, write_json
from fusion.backbones import open_backbone, weights
from fusion.backbones.loading import load
from fusion.backbones.open_clip_weights import from_open_clip
from fusion.checkpoint import save_tensors
from fusion.data.archives import opened
from fusion.data.tasks import TaskData
from fusion.heads import class_embeddings
from fusion.job import Job, progress
from fusion.model_rows import WeightsSource
from fusion.modes import freeze, initialise


def prepare_backbone(job: Job) -> None:
    """Writes θ0 in transformers format to output `model`: read from input `archive`, or where the source says.

    info.json in it has the source, and the commit of a hub that was read.

    params.settings: {row, source}, `source` one of the row's (`fusion.model_rows.WeightsSource`).
    """
    source, row = WeightsSource(**job.params["settings"]["source"]), job.params["settings"]["row"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = _folder(source, job.optional("archive"), Path(scratch))
        backbone = open_backbone(folder, row)
        with new_folder(job.output["model"]) as target:
            backbone.save(target)
            commit = weights.commit(source, folder)
            write_json(target / "info.json", {"source": source.model_dump(exclude_none=True), "commit": commit})
    count = sum(parameter.numel() for parameter in backbone.module.parameters())
    if commit and source.hub and source.revision is None:
        where = f"write `revision: {commit}` into its source of `hub: {source.hub}` (config/backbones.yaml)"
        progress(f"the model was read at the commit that the hub had; to read the same again, {where}")
    progress(f"pre-trained model of {count / 1e6:.1f} M parameters")


def take_finetuned(job: Job) -> None:
    """Writes a model that somebody else fine-tuned to the folder output `model`, as `finetune` would have.

    params.settings: {backbone, source, frozen}; the source is a folder in transformers format, or a hub's. ValueError
    where its weights do not have the names and shapes of the pre-trained model in input `model`.
    """
    settings = job.params["settings"]
    source = WeightsSource(**settings["source"])
    backbone = open_backbone(job.input["model"], settings["backbone"])
    folder = _folder(source, None, Path())
    theirs = load(type(backbone.module), folder, unused=settings["frozen"])
    shapes, trained = dict(backbone.module.named_parameters()), freeze(theirs, settings["frozen"])
    if wrong := sorted(name for name in trained if name not in shapes or trained[name].shape != shapes[name].shape):
        raise ValueError(f"{folder} differs from the pre-trained model in the shape of {wrong}; expected a model of it")
    facts = {"source": settings["source"], "commit": weights.commit(source, folder)}
    facts |= {"config_hash": digest(settings), "code_version": job.params["code"]}
    with new_folder(job.output["model"]) as target:
        save_tensors(target / "model.safetensors", trained)
        write_json(target / "training.json", facts)
    progress(f"fine-tuned model of {job.wildcards['task']} ({source.hub or source.folder})")


def _folder(source: WeightsSource, archive: Path | None, scratch: Path) -> Path:
    """The source as a folder in transformers format; what has to be made first is made in `scratch`."""
    if source.hub is not None:
        return weights.from_hub(source.hub, source.revision)
    if source.open_clip is not None and source.pretrained is not None:
        return from_open_clip(source.open_clip, source.pretrained, scratch)
    assert source.folder is not None
    folder = _unpack(archive, source.folder, scratch / "unpacked") if archive else Path(source.folder)
    return weights.from_onnx(folder / source.onnx, scratch / "converted") if source.onnx else folder


def _unpack(archive: Path, folder: str, scratch: Path) -> Path:
    """The files of one folder of a zip archive, without its subfolders."""
    with opened(archive) as zipped:
        names = [name for name in zipped.namelist() if name == f"{folder}/{Path(name).name}" != f"{folder}/"]
        if not names:
            raise ValueError(f"{archive} has no folder {folder!r} (config/backbones.yaml)")
        scratch.mkdir()
        for name in names:
            with zipped.open(name) as source, open(scratch / Path(name).name, "wb") as target:
                shutil.copyfileobj(source, target)
    return scratch


def make_head(job: Job) -> None:
    """Writes the frozen class embeddings `weight` (C, d) of θ0 to output `head`: of prompts, or prototypes."""
    backbone = open_backbone(job.input["model"], job.params["settings"]["backbone"])
    weight = class_embeddings(backbone, TaskData(Path(job.input["data"])))
    save_tensors(job.output["head"], {"weight": weight.contiguous()})


def make_init(job: Job) -> None:
    """Writes what an adapter mode adds to θ0 (A0 and B0, one draw for all tasks) to output `init`."""
    settings = job.params["settings"]
    backbone = open_backbone(job.input["model"], settings["backbone"])
    with new_folder(job.output["init"]) as folder:
        initialise(backbone.module.cpu(), settings["mode"], settings["seed"], folder)
