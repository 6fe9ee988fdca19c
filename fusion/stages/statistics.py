"""What labelled methods need to know of one fine-tuned model: its Fisher information, or its layers' inputs."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion.artifacts import digest, sha256
from fusion.backbones import Backbone, open_backbone
from fusion.checkpoint import Checkpoint, save_tensors
from fusion.data.tasks import TaskData
from fusion.device import device, on_device
from fusion.fisher_information import Resume, fisher
from fusion.job import Job, progress
from fusion.needs import grams, require_weights
from fusion.origin import origin
from fusion.scoring import batched
from fusion.spaces import Space, open_space


def statistics(job: Job) -> None:
    """Writes 'fisher' or 'gram' of one fine-tuned model on its first training examples to output `statistics`.

    The tensors have the names of the space's coordinates; the file's metadata says what they are and the seconds
    they took. In float32, whatever precision models are trained and scored in. Asked to end early, 'fisher' keeps a
    record beside the output, from which the next run goes on. NotApplicable for the Gram matrices of adapters.
    """
    settings, began = job.params["settings"], time.monotonic()
    backbone, finetuned = open_backbone(job.input["model"], settings["backbone"]), Path(job.input["finetuned"])
    model, init = Path(job.input["model"]), job.optional("init")
    space = open_space(settings["space"], model, init, [finetuned], settings["frozen"])
    params = on_device(space.vectors.map(lambda layer: layer.taus[0]).tensors())
    inputs = TaskData.of(job)[0].inputs("train", settings["examples"])
    label = f"{settings['statistic']} of {job.wildcards['task']} ({job.wildcards['mode']}, {settings['space']} space)"
    resume = Path(job.output["statistics"] + ".resume.safetensors")
    facts = {"statistic": settings["statistic"], "examples": str(len(inputs))}
    if settings["statistic"] == "fisher":
        head = Checkpoint(job.input["head"])["weight"].to(device())
        earlier = Resume(resume, identity(job), label)
        found, spent = fisher(
            backbone, space.to_weights, params, head, inputs, settings["labels"], settings["seed"], earlier
        )
        began -= spent
        facts["labels"] = settings["labels"]
    else:
        found = gram(backbone, space, params, inputs, settings["batch_size"])
    for name, tensor in found.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"the {settings['statistic']} of {name!r} is not finite; expected a model that trained well"
            )
    seconds = time.monotonic() - began
    save_tensors(job.output["statistics"], found, facts | {"seconds": str(seconds)} | origin(job))
    resume.unlink(missing_ok=True)
    progress(f"{label}: {len(inputs)} examples in {seconds:.0f} s")


def identity(job: Job) -> str:
    """A hash of all that a statistic depends on: settings, code, θ0, the adapters' start, the model, data and head."""
    read = [Checkpoint(path) for name in ("model", "init", "finetuned", "head") for path in job.paths(name)]
    files = [sha256(file) for one in read for file in one.files]
    data = TaskData(Path(job.input["data"])).info["fingerprint"]
    return digest([job.params["settings"], job.params["code"], files, data])


def gram(
    backbone: Backbone, space: Space, params: Mapping[str, Tensor], inputs: Sequence[Any], batch_size: int
) -> dict[str, Tensor]:
    """The mean of x xᵀ over the inputs x of each linear layer, (in, in), by the name of its weight."""
    require_weights(backbone, space)
    batches = [batch for _, batch in batched(backbone, inputs, batch_size).batches]
    found = grams(backbone, on_device(space.to_weights(params)), batches, list(params))
    return {name: total.cpu() for name, total in found.items()}
