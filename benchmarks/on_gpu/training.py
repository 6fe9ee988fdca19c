"""A step of fine-tuning in every mode, as the stage takes it, against a bare loop of the same model and recipe.

Pictures are prepared; the stage still makes its batches of them and moves them to the device. The bare loop finds a
batch there, and neither looks at its losses nor changes its rate.
"""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusion.backbones import Backbone
from fusion.device import autocast, on_device
from fusion.modes import attach, freeze, initialise
from fusion.stages.finetune import Batch, Task, train
from on_gpu.measure import clear, extra_bytes, side_by_side
from on_gpu.prepared import Tower, pictures
from on_gpu.setup import Figures, Rows, Setup

ADAPTER = {"r": 16, "alpha": 32, "dropout": 0.0, "init_lora_weights": True, "target_modules": ["q_proj", "v_proj"]}
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"adapter": ADAPTER, "linearized": False},
    "l_lora": {"adapter": ADAPTER, "linearized": True},
}
RECIPE = {"lr": 1e-5, "weight_decay": 0.1, "warmup_steps": 0, "checkpoint_every": 10**9, "clip": 1.0}
STEPS = 20  # of one timing: the first must wait for its batch
OF_BARE, L_LORA = 1.05, 1.0  # at most

Parameters = dict[str, nn.Parameter]


def rows(setup: Setup) -> Rows:
    """One a mode."""
    for mode in MODES:
        yield row(mode), partial(compare, setup, mode)


def row(mode: str) -> str:
    """What the row of a mode is called."""
    return f"fine-tuning step, {mode}"


def compare(setup: Setup, mode: str) -> Figures:
    """A step beside the bare loop's."""
    clear(setup.place)
    backbone, trained = prepared(setup, mode)
    size, steps = setup.sizes.batch, 2 if setup.is_tiny else STEPS
    inputs = pictures(setup, 4 * size)
    labels = torch.arange(len(inputs)) % 10
    task = Task(inputs, labels, setup.head())
    there = on_device(backbone.collate(inputs[:size])), labels[:size].to(setup.place), task.head
    with tempfile.TemporaryDirectory() as folder:
        recipe = {**RECIPE, "steps": steps, "batch_size": size}
        works = {
            "ours": partial(train, backbone, trained, [task], recipe, 0, Path(folder) / "resume", row(mode), ""),
            "bare": partial(bare, backbone, trained, Batch(*there), recipe),
        }
        times = side_by_side(works, setup.place, setup.sizes.repeats)
        taken = extra_bytes(works["ours"], setup.place)
    figures = {
        "ms": setup.goal(1000 * times["ours"] / steps),
        "of a bare loop": setup.goal(times["ours"] / times["bare"], at_most=OF_BARE),
        "extra GB": setup.goal(taken / 1e9),
    }
    if mode == "l_lora":
        of_lora = figures["ms"]["value"] / setup.figure(row("lora"), "ms")
        figures["of LoRA"] = setup.goal(of_lora, at_most=L_LORA)
    return figures


def prepared(setup: Setup, mode: str) -> tuple[Backbone, Parameters]:
    """The tower in a mode, and the parameters that train."""
    module = setup.tower()
    trained = freeze(module, ["visual_projection.weight"])
    if MODES[mode]:
        with tempfile.TemporaryDirectory() as folder:
            initialise(setup.tower(), MODES[mode], 0, Path(folder))
            trained = attach(module, MODES[mode], Path(folder))
        module.to(setup.place)
    return Tower(module), trained


def bare(backbone: Backbone, trained: Parameters, batch: Batch, recipe: Mapping[str, Any]) -> None:
    """The recipe's steps on one batch, and nothing else."""
    backbone.module.train()
    optimizer = torch.optim.AdamW(trained.values(), lr=recipe["lr"], weight_decay=recipe["weight_decay"])
    for _ in range(recipe["steps"]):
        with autocast():
            loss = nn.functional.cross_entropy(backbone.logits({}, batch.inputs, batch.head), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), recipe["clip"])
        optimizer.step()
