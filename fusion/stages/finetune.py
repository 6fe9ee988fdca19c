"""Fine-tuning one task in one mode, resumable to the bit."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from fusion.artifacts import digest, new_folder, sha256, write_json
from fusion.backbones import Backbone, open_backbone
from fusion.checkpoint import Checkpoint, save_tensors
from fusion.data.tasks import TaskData, shuffled
from fusion.device import autocast, device, precision
from fusion.job import Job, progress
from fusion.modes import ADAPTER, adapter_state, attach, freeze, lora_config, save_adapter

Parameters = dict[str, nn.Parameter]


def finetune(job: Job) -> None:
    """Writes the fine-tuned model to the folder output `model`: a PEFT adapter, or the parameters that trained.

    AdamW on the cross-entropy against the frozen head, cosine schedule after a linear warm-up, clipped gradients.
    A checkpoint is kept beside the output every `checkpoint_every` steps; a run that finds one made by the same
    settings goes on from it and ends with the same bytes as one that was never interrupted.
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
    label = f"fine-tuning {job.wildcards['task']} ({job.wildcards['mode']}, seed {seed})"
    data, made_from = TaskData(Path(job.input["data"])), identity(job)
    facts = train(backbone, trained, _head(job), data, recipe, seed, resume, label, made_from)
    with new_folder(job.output["model"]) as folder:
        if init is None:
            save_tensors(folder / "model.safetensors", trained)
        else:
            rank = next(t for n, t in load_file(init / ADAPTER).items() if "lora_A" in n).shape[0]
            state = adapter_state(backbone.module, mode, init)
            save_adapter(folder, state, lora_config(mode["adapter"], rank // mode["adapter"]["r"]))
        write_json(folder / "training.json", facts | {"config_hash": made_from, "code_version": job.params["code"]})
    resume.unlink(missing_ok=True)
    progress(f"{label}: loss {facts['first_loss']:.2f} → {facts['last_loss']:.2f} in {facts['seconds']:.0f} s")


def identity(job: Job) -> str:
    """A hash of all that the result depends on: settings, code, θ0, the adapters' start, data and head."""
    init = job.optional("init")
    return digest(
        {
            "settings": job.params["settings"],
            "code": job.params["code"],
            "model": sha256(Path(job.input["model"]) / "model.safetensors"),
            "init": sha256(init / ADAPTER) if init else "",
            "data": TaskData(Path(job.input["data"])).info["fingerprint"],
            "head": sha256(job.input["head"]),
        }
    )


def _head(job: Job) -> Tensor:
    return Checkpoint(job.input["head"])["weight"].to(device())


def train(
    backbone: Backbone,
    trained: Parameters,
    head: Tensor,
    data: TaskData,
    recipe: Mapping[str, Any],
    seed: int,
    resume: Path,
    label: str,
    identity: str,
) -> dict[str, Any]:
    """Trains `trained` in place; facts about the run (losses, seconds, precision)."""
    inputs, labels = data.inputs("train"), data.labels("train").to(device())
    optimizer = torch.optim.AdamW(trained.values(), lr=recipe["lr"], weight_decay=recipe["weight_decay"])
    done, spent, losses = _restore(resume, identity, trained, optimizer)
    order = shuffled(len(inputs), recipe["batch_size"], Generator().manual_seed(seed))
    backbone.module.train()
    began = time.monotonic() - spent
    for step in range(recipe["steps"]):
        indices = next(order)
        if step < done:
            continue
        torch.manual_seed((seed << 32) + step)  # dropout draws the same in a run that resumes here
        losses.append(_step(backbone, trained, head, inputs, labels, indices, optimizer, recipe, step))
        if (step + 1) % recipe["checkpoint_every"] == 0 and step + 1 < recipe["steps"]:
            seconds = time.monotonic() - began
            _keep(resume, identity, trained, optimizer, step + 1, seconds, losses)
            left = seconds / (step + 1) * (recipe["steps"] - step - 1)
            progress(f"{label}: step {step + 1} of {recipe['steps']}, loss {losses[-1]:.2f}, {left:.0f} s left")
    backbone.module.eval()
    ends = max(1, len(losses) // 10)
    return {
        "seconds": time.monotonic() - began,
        "steps": recipe["steps"],
        "first_loss": sum(losses[:ends]) / ends,
        "last_loss": sum(losses[-ends:]) / ends,
        "trained_parameters": sum(parameter.numel() for parameter in trained.values()),
        "precision": str(precision()).removeprefix("torch."),
    }


def _step(
    backbone: Backbone,
    trained: Parameters,
    head: Tensor,
    inputs: Any,
    labels: Tensor,
    indices: list[int],
    optimizer: torch.optim.Optimizer,
    recipe: Mapping[str, Any],
    step: int,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = recipe["lr"] * schedule(step, recipe["steps"], recipe["warmup_steps"])
    batch = backbone.collate([inputs[i] for i in indices])
    with autocast():
        loss = nn.functional.cross_entropy(backbone.logits({}, batch, head), labels[indices])
    if not torch.isfinite(loss):
        raise ValueError(
            f"the loss is {loss.item()} at step {step + 1}; expected a smaller finetune.lr than {recipe['lr']}"
        )
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(trained.values(), recipe["clip"])
    optimizer.step()
    return loss.item()


def schedule(step: int, steps: int, warmup: int) -> float:
    """The factor of the learning rate at a step: linear from 0 over the warm-up, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _keep(
    path: Path,
    identity: str,
    trained: Parameters,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
    losses: list[float],
) -> None:
    tensors: dict[str, Tensor] = {"losses": torch.tensor(losses, dtype=torch.float64)}
    for name, parameter in trained.items():
        tensors[f"parameter.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    save_tensors(path, tensors, {"identity": identity, "step": str(step), "seconds": str(seconds)})


def _restore(
    path: Path, identity: str, trained: Parameters, optimizer: torch.optim.Optimizer
) -> tuple[int, float, list[float]]:
    """The steps done, the seconds they took and their losses; (0, 0, []) where no checkpoint is of this run."""
    if not path.is_file():
        return 0, 0.0, []
    kept = Checkpoint(path)
    if kept.metadata["identity"] != identity:
        return 0, 0.0, []
    kinds = {key.partition(".")[0] for key in kept} - {"parameter", "losses"}
    for name, parameter in trained.items():
        parameter.data.copy_(kept[f"parameter.{name}"])
        state = {kind: kept[f"{kind}.{name}"] for kind in kinds}
        # Adam keeps its count of steps on the CPU, and its moments beside the parameter
        optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
    progress(f"resuming at step {kept.metadata['step']} from {path}")
    return int(kept.metadata["step"]), float(kept.metadata["seconds"]), kept["losses"].tolist()
