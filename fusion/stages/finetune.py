"""Fine-tuning in one mode, on one task or on all of a suite at once, resumable to the bit."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from fusion.adapter import WEIGHTS
from fusion.ahead import ahead
from fusion.allocation import allocation
from fusion.artifacts import digest, new_folder, sha256, write_json
from fusion.backbones import Backbone, open_backbone
from fusion.checkpoint import Checkpoint, save_tensors
from fusion.cost import measured
from fusion.data.tasks import TaskData, shuffled
from fusion.device import autocast, device, precision
from fusion.interruption import Interrupted, asked, listening
from fusion.job import Job, progress, queue_seconds
from fusion.losses import Losses, require_finite
from fusion.modes import adapter_state, attach, freeze, lora_config, save_adapter
from fusion.resumption import Parameters, keep, restore


@dataclass(frozen=True)
class Task:
    """What is trained on: a task's training split, and its frozen head (C, d) where the model is.

    inputs, and their classes (n,) in the CPU's memory.
    """

    inputs: Sequence[Any]
    labels: Tensor
    head: Tensor


@dataclass(frozen=True)
class Batch:
    """What one step is about: collated inputs, their classes (B,), the frozen head (C, d) of their task."""

    inputs: Any
    labels: Tensor
    head: Tensor


def finetune(job: Job) -> None:
    """Writes the fine-tuned model to the folder output `model`: a PEFT adapter, or the parameters that trained.

    Inputs `data` and `heads` are those of one task, or of all T of a suite, on which one model trains in turn.
    AdamW on the cross-entropy against the frozen head, cosine schedule after a linear warm-up, clipped gradients.
    A checkpoint is kept beside the output every `checkpoint_every` steps; a run that finds one made by the same
    settings goes on from it and ends with the same bytes as one that was never interrupted. Asked to end early, it
    keeps a checkpoint and raises Interrupted.
    """
    settings = job.params["settings"]
    recipe, mode, seed = settings["finetune"], settings["mode"], settings["seed"]
    backbone = open_backbone(job.input["model"], settings["backbone"])
    init = job.optional("init")
    trained = freeze(backbone.module, mode["frozen"])
    if init is not None:
        trained = attach(backbone.module, mode, init)
        backbone.module.to(device())
    resume = Path(job.output["model"] + ".resume.safetensors")
    what = job.wildcards.get("task") or f"all of {job.wildcards['suite']}"
    label, made_from = f"fine-tuning {what} ({job.wildcards['mode']}, seed {seed})", identity(job)
    with measured() as cost:
        facts = train(backbone, trained, tasks(job), recipe, seed, resume, label, made_from)
    with new_folder(job.output["model"]) as folder:
        if init is None:
            save_tensors(folder / "model.safetensors", trained)
        else:
            rank = next(t for n, t in load_file(init / WEIGHTS).items() if "lora_A" in n).shape[0]
            state = adapter_state(backbone.module, mode, init)
            save_adapter(folder, state, lora_config(mode["adapter"], rank // mode["adapter"]["r"]))
        facts |= {"peak_bytes": cost.peak_bytes, "queue_seconds": queue_seconds(), **allocation()}
        write_json(folder / "training.json", facts | {"config_hash": made_from, "code_version": job.params["code"]})
    resume.unlink(missing_ok=True)
    progress(f"{label}: loss {facts['first_loss']:.2f} → {facts['last_loss']:.2f} in {facts['seconds']:.0f} s")


def identity(job: Job) -> str:
    """A hash of all that the result depends on: settings, code, θ0, the adapters' start, data and heads."""
    init = job.optional("init")
    return digest(
        {
            "settings": job.params["settings"],
            "code": job.params["code"],
            "model": sha256(Path(job.input["model"]) / "model.safetensors"),
            "init": sha256(init / WEIGHTS) if init else "",
            "data": [TaskData(Path(path)).info["fingerprint"] for path in job.paths("data")],
            "heads": [sha256(path) for path in job.paths("heads")],
        }
    )


def tasks(job: Job) -> list[Task]:
    """The tasks of inputs `data` and `heads`, in their order."""
    heads = [Checkpoint(path)["weight"].to(device()) for path in job.paths("heads")]
    data = zip(TaskData.of(job), heads, strict=True)
    return [Task(one.inputs("train"), one.labels("train"), head) for one, head in data]


def train(
    backbone: Backbone,
    trained: Parameters,
    tasks: Sequence[Task],
    recipe: Mapping[str, Any],
    seed: int,
    resume: Path,
    label: str,
    identity: str,
) -> dict[str, Any]:
    """Trains `trained` in place; facts about the run (losses, seconds, precision).

    T tasks take T times the steps of the recipe, warm-up included, and so as many examples as T individual models;
    checkpoints come as often as for one task, so that an interruption costs no more.
    """
    recipe = {**recipe, **{name: len(tasks) * recipe[name] for name in ("steps", "warmup_steps")}}
    optimizer = torch.optim.AdamW(trained.values(), lr=recipe["lr"], weight_decay=recipe["weight_decay"])
    done, spent, known = restore(resume, identity, trained, optimizer)
    losses = Losses(known, recipe["lr"])
    order = islice(batches(tasks, recipe["batch_size"], seed), done, recipe["steps"])
    backbone.module.train()
    began = time.monotonic() - spent
    with listening():
        for step, batch in enumerate(_made(backbone, tasks, order), done):
            torch.manual_seed((seed << 32) + step)  # dropout draws the same in a run that resumes here
            losses.add(_step(backbone, trained, batch, optimizer, recipe, step))
            if step + 1 < recipe["steps"] and (asked() or (step + 1) % recipe["checkpoint_every"] == 0):
                values = _finite(losses, trained, recipe, step + 1)
                seconds = time.monotonic() - began
                keep(resume, identity, trained, optimizer, step + 1, seconds, values)
                left = seconds / (step + 1) * (recipe["steps"] - step - 1)
                progress(f"{label}: step {step + 1} of {recipe['steps']}, loss {values[-1]:.2f}, {left:.0f} s left")
                if asked():
                    raise Interrupted
    backbone.module.eval()
    values = _finite(losses, trained, recipe, recipe["steps"])
    ends = max(1, len(values) // 10)
    return {
        "seconds": time.monotonic() - began,
        "steps": recipe["steps"],
        "first_loss": sum(values[:ends]) / ends,
        "last_loss": sum(values[-ends:]) / ends,
        "trained_parameters": sum(parameter.numel() for parameter in trained.values()),
        "precision": str(precision()).removeprefix("torch."),
    }


def _finite(losses: Losses, trained: Parameters, recipe: Mapping[str, Any], step: int) -> list[float]:
    """The losses of all steps so far; ValueError where one of them, or what trains, is not finite."""
    values = losses.values()
    require_finite(trained.values(), step, recipe["lr"])
    return values


def _made(backbone: Backbone, tasks: Sequence[Task], order: Iterable[tuple[int, list[int]]]) -> Iterator[Batch]:
    """The batches of an order, collated where the cores are and then moved to the model."""

    def make(key: tuple[int, list[int]]) -> tuple[int, Any, Tensor]:
        t, indices = key
        return t, backbone.collate([tasks[t].inputs[i] for i in indices]), tasks[t].labels[indices]

    return (Batch(inputs, labels, tasks[t].head) for t, inputs, labels in ahead(make, order))


def batches(tasks: Sequence[Task], batch_size: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Endless batches, as a task's number and indices into it: each cycle has one of every task, in a new random order.

    A task's batches are those of its individual model with the same seed, in the same order.
    """
    orders = [shuffled(len(task.inputs), batch_size, Generator().manual_seed(seed)) for task in tasks]
    rng = Generator().manual_seed(seed)
    while True:
        for t in torch.randperm(len(tasks), generator=rng).tolist():
            yield t, next(orders[t])


def _step(
    backbone: Backbone,
    trained: Parameters,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    recipe: Mapping[str, Any],
    step: int,
) -> Tensor:
    for group in optimizer.param_groups:
        group["lr"] = recipe["lr"] * schedule(step, recipe["steps"], recipe["warmup_steps"])
    with autocast():
        loss = nn.functional.cross_entropy(backbone.logits({}, batch.inputs, batch.head), batch.labels)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(trained.values(), recipe["clip"])
    optimizer.step()
    return loss


def schedule(step: int, steps: int, warmup: int) -> float:
    """The factor of the learning rate at a step: linear from 0 over the warm-up, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
