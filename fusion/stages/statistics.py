"""What labelled methods need to know of one fine-tuned model: its Fisher information, or its layers' inputs."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion.ahead import ahead
from fusion.backbones import Backbone, open_backbone
from fusion.checkpoint import Checkpoint, save_tensors
from fusion.data.tasks import TaskData
from fusion.device import device, on_device
from fusion.job import Job, progress
from fusion.needs import grams, require_weights
from fusion.origin import origin
from fusion.scoring import batched
from fusion.spaces import Space, open_space


def statistics(job: Job) -> None:
    """Writes 'fisher' or 'gram' of one fine-tuned model on its first training examples to output `statistics`.

    The tensors have the names of the space's coordinates; the file's metadata says what they are and the seconds
    they took. In float32, whatever precision models are trained and scored in. NotApplicable for the Gram matrices
    of adapters.
    """
    settings, began = job.params["settings"], time.monotonic()
    backbone, finetuned = open_backbone(job.input["model"], settings["backbone"]), Path(job.input["finetuned"])
    model, init = Path(job.input["model"]), job.optional("init")
    space = open_space(settings["space"], model, init, [finetuned], settings["frozen"])
    params = on_device(space.vectors.map(lambda layer: layer.taus[0]).tensors())
    inputs = TaskData.of(job)[0].inputs("train", settings["examples"])
    if settings["statistic"] == "fisher":
        head = Checkpoint(job.input["head"])["weight"].to(device())
        found = fisher(backbone, space, params, head, inputs)
    else:
        found = gram(backbone, space, params, inputs, settings["batch_size"])
    for name, tensor in found.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"the {settings['statistic']} of {name!r} is not finite; expected a model that trained well"
            )
    seconds = time.monotonic() - began
    facts = {"statistic": settings["statistic"], "examples": str(len(inputs)), "seconds": str(seconds)}
    save_tensors(job.output["statistics"], found, facts | origin(job))
    label = f"{settings['statistic']} of {job.wildcards['task']} ({job.wildcards['mode']}, {settings['space']} space)"
    progress(f"{label}: {len(inputs)} examples in {seconds:.0f} s")


def fisher(
    backbone: Backbone, space: Space, params: Mapping[str, Tensor], head: Tensor, inputs: Sequence[Any]
) -> dict[str, Tensor]:
    """The diagonal Fisher information E_x E_{y ~ p(y|x)} (∂ log p(y|x) / ∂θ)² by name, each of its tensor's shape.

    The expectation over labels is exact and the gradients are squared example by example (Matena and Raffel, 2022).
    """
    coordinates = {name: tensor.requires_grad_() for name, tensor in params.items() if tensor.is_floating_point()}
    totals = {name: torch.zeros_like(tensor) for name, tensor in coordinates.items()}
    for batch in ahead(lambda i: backbone.collate([inputs[i]]), range(len(inputs))):
        weights = on_device(space.to_weights(params))
        (logits,) = backbone.logits(weights, batch, head)
        for direction in label_directions(logits.detach()):
            gradients = torch.autograd.grad(
                logits, list(coordinates.values()), direction, retain_graph=True, allow_unused=True
            )
            for total, gradient in zip(totals.values(), gradients, strict=True):
                if gradient is not None:
                    total.addcmul_(gradient, gradient)
    return {name: (total / len(inputs)).cpu() for name, total in totals.items()}


def label_directions(logits: Tensor) -> Iterator[Tensor]:
    """Directions v of the logits z (C,) with Σ_v (∂ v·z)² = E_{y ~ softmax z} (∂ log softmax(z)_y)²; at most C − 1.

    ∂ log p_y = (e_y − p)·∂z, so both are quadratic forms of ∂z: any v with Σ v vᵀ = Σ_y p_y (e_y − p)(e_y − p)ᵀ =
    diag p − p pᵀ will do. Its eigenvectors are one fewer than the labels: half the work where there are two.
    """
    p = logits.double().softmax(-1)
    values, vectors = torch.linalg.eigh(torch.diag(p) - torch.outer(p, p))
    count = int((values > 1e-7 * values[-1]).sum())  # the rest is rounding, as is the direction (1, …, 1)
    yield from (values.sqrt() * vectors).T[len(values) - count :].to(logits)


def gram(
    backbone: Backbone, space: Space, params: Mapping[str, Tensor], inputs: Sequence[Any], batch_size: int
) -> dict[str, Tensor]:
    """The mean of x xᵀ over the inputs x of each linear layer, (in, in), by the name of its weight."""
    require_weights(backbone, space)
    batches = [batch for _, batch in batched(backbone, inputs, batch_size).batches]
    found = grams(backbone, on_device(space.to_weights(params)), batches, list(params))
    return {name: total.cpu() for name, total in found.items()}
