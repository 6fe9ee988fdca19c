"""What RegMean++ needs to know: the inputs of each layer where the layers before it are merged already."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fusion.backbones import open_backbone
from fusion.checkpoint import save
from fusion.data.tasks import TaskData
from fusion.device import on_device
from fusion.job import Job, progress
from fusion.methods.regmean_plus_plus import walk
from fusion.needs import grams, require_weights
from fusion.origin import origin
from fusion.scoring import batched
from fusion.spaces import open_space


def merged_grams(job: Job) -> None:
    """Writes the Gram matrices (T, in, in) of a suite's tasks by weight, in float32, to output `statistics`.

    They are means over the tasks' first training examples. The file's metadata has what they are, the
    `off_diagonal` at which layers were merged, and the seconds that they took. NotApplicable for adapters.
    """
    settings, began = job.params["settings"], time.monotonic()
    backbone, model = open_backbone(job.input["model"], settings["backbone"]), Path(job.input["model"])
    finetuned = [Path(path) for path in job.paths("finetuned")]
    space = open_space(settings["space"], model, job.optional("init"), finetuned, settings["frozen"])
    require_weights(backbone, space)
    inputs = [task.inputs("train", settings["examples"]) for task in TaskData.of(job)]
    examples = [batched(backbone, one, settings["batch_size"]) for one in inputs]

    def features(task: int, params: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        weights = on_device(space.to_weights(params))
        batches = [batch for _, batch in examples[task].batches]
        found = grams(backbone, weights, batches, names, until_seen=True)
        return {name: gram.cpu() for name, gram in found.items()}

    def facts() -> dict[str, str]:
        found = {"statistic": "merged_gram", "examples": str(settings["examples"]), **origin(job)}
        return found | {"off_diagonal": str(settings["off_diagonal"]), "seconds": str(time.monotonic() - began)}

    pretrained = space.vectors.pretrained
    names = list(grams(backbone, {}, [next(batch for _, batch in examples[0].batches)], list(pretrained)))
    sizes = {name: pretrained[name].shape[1] for name in names}
    layout = {name: (torch.float32, (len(inputs), size, size)) for name, size in sizes.items()}
    save(job.output["statistics"], layout, walk(space.vectors, features, names, settings["off_diagonal"]), facts)
    label = f"Gram matrices of merged inputs of {job.wildcards['suite']} ({job.wildcards['mode']})"
    progress(f"{label}: {len(names)} layers, {len(inputs)} tasks in {time.monotonic() - began:.0f} s")
