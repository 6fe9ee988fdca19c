"""What every mode starts from: pre-trained weights, class heads, and the adapters' initial value."""

import shutil
import tempfile
from pathlib import Path

import torch

from fusion.artifacts import new_folder
from fusion.backbones import open_backbone
from fusion.checkpoint import save_tensors
from fusion.data.archives import opened
from fusion.data.tasks import TaskData
from fusion.job import Job, progress
from fusion.modes import initialise


def prepare_backbone(job: Job) -> None:
    """Writes θ0 in transformers format to output `model`: read from input `archive`, or from a local folder.

    params.settings: {row, source: {archive, folder}}.
    """
    source, row = job.params["settings"]["source"], job.params["settings"]["row"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(source["folder"])
        if archive := job.optional("archive"):
            folder = _unpack(archive, source["folder"], Path(scratch))
        backbone = open_backbone(folder, row)
        with new_folder(job.output["model"]) as target:
            backbone.save(target)
    count = sum(parameter.numel() for parameter in backbone.module.parameters())
    progress(f"pre-trained model of {count / 1e6:.1f} M parameters")


def _unpack(archive: Path, folder: str, scratch: Path) -> Path:
    """The files of one folder of a zip archive, without its subfolders."""
    with opened(archive) as zipped:
        names = [name for name in zipped.namelist() if name == f"{folder}/{Path(name).name}" != f"{folder}/"]
        if not names:
            raise ValueError(f"{archive} has no folder {folder!r} (config/backbones.yaml)")
        for name in names:
            with zipped.open(name) as source, open(scratch / Path(name).name, "wb") as target:
                shutil.copyfileobj(source, target)
    return scratch


def make_head(job: Job) -> None:
    """Writes the frozen class embeddings `weight` (C, d) to output `head`: the label prompts, embedded by θ0."""
    backbone = open_backbone(job.input["model"], job.params["settings"]["backbone"])
    info = TaskData(Path(job.input["data"])).info
    prompts = [info["prompt"].format(words) for words in info["words"]]
    with torch.inference_mode():
        weight = backbone.features({}, backbone.collate(prompts))
    save_tensors(job.output["head"], {"weight": weight.contiguous()})


def make_init(job: Job) -> None:
    """Writes what an adapter mode adds to θ0 (A0 and B0, one draw for all tasks) to output `init`."""
    settings = job.params["settings"]
    backbone = open_backbone(job.input["model"], settings["backbone"])
    with new_folder(job.output["init"]) as folder:
        initialise(backbone.module.cpu(), settings["mode"], settings["seed"], folder)
