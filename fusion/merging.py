"""Merging models on disk: task vectors are read lazily and the merged model is written tensor by tensor."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fusion.artifacts import new_file, new_folder
from fusion.bodies import View, bodies, hint, left_out, save_heads
from fusion.card import Facts, card, hashing
from fusion.catalogue import Recipe
from fusion.checkpoint import Checkpoint, Layout, save, size
from fusion.device import chosen, name_of, out_of_memory
from fusion.folder import copy_companions, exports, large
from fusion.merged import Merged, TaskModels
from fusion.methods import merge
from fusion.oddities import oddities
from fusion.opening import open_finetuned, open_pretrained
from fusion.sharded import FORMAT, require_storable, save_folder
from fusion.stopping import Stopping
from fusion.vectors import TaskVectors

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Order(NamedTuple):
    """A merge that was asked for: what, of which models, to where and how."""

    recipe: Recipe
    pretrained: Path
    finetuned: Sequence[Path]
    out: Path
    seed: int
    dtype: str | None
    shard_bytes: int
    quiet: bool
    command: Sequence[str]
    strict: bool = False
    device: str = "auto"  # or cpu, cuda
    heads: str | None = None  # 'keep': what not all models have is left out, and to each its own

    @property
    def torch_dtype(self) -> torch.dtype | None:
        return DTYPES[self.dtype] if self.dtype else None

    @property
    def card(self) -> Path:
        """Where the card of a model that is one file goes."""
        return self.out.with_suffix(".md")


def run(order: Order, stopping: Stopping) -> None:
    """Writes the merged model and its card to `order.out`, whole or not at all.

    MemoryError where a GPU has not the memory for one tensor of all models.
    """
    try:
        _run(order, stopping)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, "one tensor of all models must fit; merge with --device cpu") from error


def _run(order: Order, stopping: Stopping) -> None:
    base = open_pretrained(order.pretrained)
    models = [open_finetuned(path, base) for path in order.finetuned]
    files = [file for model in (base, *models) for file in model.files]
    is_file = order.out.suffix == ".safetensors"
    heads: Sequence[View] = ()
    if order.heads:
        apart = bodies(base, models)
        for line in left_out(apart, base, _head_files(order, order.out)):
            print(line, file=sys.stderr, flush=True)
        base, models, heads = apart.base, apart.models, apart.heads
    if order.pretrained.is_dir() and not is_file:
        _require_companions(order.pretrained)
    with hashing(files) as hashes, ExitStack() as stack:
        rng = Generator().manual_seed(order.seed)
        place = chosen(order.device)
        if place.type != "cpu" and not order.quiet:
            print(f"merging on {name_of(place)}; --device cpu merges on the host", file=sys.stderr, flush=True)
        taus = _task_vectors(base, models, order, place)
        warnings = _warn(order, base, models)
        state = merge(order.recipe.pipeline, taus, rng=rng, values=order.recipe.values)
        layout = state.for_task(0).layout(order.torch_dtype)
        require_storable(layout)
        out = stack.enter_context(new_file(order.out) if is_file else new_folder(order.out))
        text = stack.enter_context(new_file(order.card)) if is_file else out / "README.md"
        stack.callback(stopping.shield)  # the last to enter is the first to leave
        if is_file:
            save(out, layout, _tensors(state.for_task(0), order, "", stopping), FORMAT)
        else:
            _write_folders(state, order, out, stopping)
            save_heads(heads, _head_files(order, out))
        cards = [text] if isinstance(state, Merged) else [text, *(out / n / "README.md" for n in _task_names(order))]
        facts = _facts(order, layout, state, files)._replace(warnings=warnings)
        for path in cards:
            path.write_text(card(order.recipe, facts, hashes()), encoding="utf-8")
        for path in (order.out, order.card) if is_file else (order.out,):
            if path.exists() or path.is_symlink():
                raise FileExistsError(f"{path} came to be while the models were merged, and is left as it is")


def _task_vectors(
    base: Checkpoint, models: Sequence[Mapping[str, Tensor]], order: Order, place: torch.device
) -> TaskVectors:
    """The task vectors; ValueError says too whether the models fit but for their heads."""
    try:
        return TaskVectors(base, models, place)
    except ValueError as error:
        raise ValueError(f"{error}{'' if order.heads else hint(base, models)}") from error


def _head_files(order: Order, out: Path) -> list[Path]:
    """Where the tensors go that only one model has: 'heads/0_food.safetensors'."""
    return [out / "heads" / f"{name}.safetensors" for name in _task_names(order)]


def _warn(order: Order, base: Checkpoint, models: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """What is odd about the merge, said on stderr before it begins; ValueError instead where that is strict."""
    lines = list(oddities(order.recipe.pipeline, order.pretrained, order.finetuned, base, models))
    if lines and order.strict:
        raise ValueError(f"--strict: {'; '.join(lines)}")
    for line in lines:
        print(f"warning: {line}", file=sys.stderr, flush=True)
    return lines


def _write_folders(state: Merged | TaskModels, order: Order, out: Path, stopping: Stopping) -> None:
    """The model as a folder, or one sub-folder a task, in the order of the fine-tuned models."""
    if isinstance(state, Merged):
        return _write_folder(state, order, out, "", stopping)
    for task, name in enumerate(_task_names(order)):
        (out / name).mkdir()
        _write_folder(state.for_task(task), order, out / name, f"{name}: ", stopping)


def _task_names(order: Order) -> list[str]:
    """The sub-folder of every task's model: '0_food'."""
    paths = [path.absolute() for path in order.finetuned]
    return [f"{task}_{path.stem if path.is_file() else path.name}" for task, path in enumerate(paths)]


def _write_folder(merged: Merged, order: Order, out: Path, what: str, stopping: Stopping) -> None:
    if order.pretrained.is_dir():
        copy_companions(order.pretrained, out, str(DTYPES[order.dtype]).removeprefix("torch.") if order.dtype else None)
    save_folder(out, merged.layout(order.torch_dtype), _tensors(merged, order, what, stopping), order.shard_bytes)


def _tensors(merged: Merged, order: Order, what: str, stopping: Stopping) -> Iterator[tuple[str, Tensor]]:
    """The merged tensors, with a line about the progress at the first, the last and every few seconds."""
    total, began, told = len(merged.vectors.pretrained), time.monotonic(), 0.0
    for done, one in enumerate(merged.layers(order.torch_dtype), 1):
        now = time.monotonic()
        if not order.quiet and (done in (1, total) or now - told > 2):
            print(f"{what}{done}/{total} tensors, {now - began:.1f} s", file=sys.stderr, flush=True)
            told = now
        stopping.check()
        yield one


def _require_companions(pretrained: Path) -> None:
    """ValueError where P has what can be neither copied nor left out; lines on stderr about what is left out."""
    reasons = {
        "made of the weights of P; export the merged model anew": exports(pretrained),
        "over 100 MB; copy it into the merged folder, if the model needs it": large(pretrained),
    }
    for reason, names in reasons.items():
        if names:
            print(f"left out: {', '.join(names)} ({reason})", file=sys.stderr)


def _facts(order: Order, layout: Layout, state: Merged | TaskModels, files: Sequence[Path]) -> Facts:
    count = sum(torch.Size(shape).numel() for _, shape in layout.values())
    types = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype, _ in layout.values()}))
    text = (
        f"{len(layout)} tensors, {count:,} parameters, {sum(size(*one) for one in layout.values()):,} bytes ({types})."
    )
    if isinstance(state, TaskModels):
        text += f" One model a task, each in its folder; {state.extra_parameters:,} parameters beyond those of one."
    if order.heads:
        text += " What not all models have is not merged; that of each is in `heads/`, by its own names."
    library = "transformers" if (order.pretrained / "config.json").is_file() else "safetensors"
    where = name_of(state.vectors.device)
    return Facts(order.pretrained, order.finetuned, files, order.seed, where, order.command, text, library)
