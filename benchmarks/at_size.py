"""What labelled and unlabelled methods ask of a network, against plain loops: `python benchmarks/at_size.py`.

On a sentence encoder of MiniLM's size with random weights: Fisher information with many directions of the logits at
once, or of one sampled label, against one backward pass after the other; and the entropy of one batch over all tasks,
against a batch a task. Each is timed in turn with what it is compared with.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from machine import bound, verdict, write
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from fusion.device import autocast
from fusion.fisher_information import Labels, Resume, exact_directions, fisher
from fusion.objectives import TotalEntropy, entropy

TOKENS, CLASSES, EXAMPLES = 24, 20, 3
TASKS, BATCH = 4, 8
REPEATS = 5
FASTER = {"exact": 1.0, "sampled": 8.0, "entropy": 1.5}  # at least


class Encoder:
    """A backbone with random weights, on random tokens."""

    def __init__(self) -> None:
        config = BertConfig(vocab_size=1000, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                            intermediate_size=1536)  # fmt: skip
        torch.manual_seed(0)
        self.module = BertModel(config).eval()
        self.head = normalize(torch.randn(CLASSES, 384), dim=-1)
        self.inputs = torch.randint(1000, (TASKS * BATCH, TOKENS)).tolist()

    def params(self) -> dict[str, Tensor]:
        """The parameters that count, as leaves."""
        named = self.module.named_parameters()
        return {name: p.detach().clone() for name, p in named if "word_embeddings" not in name and "pooler" not in name}

    def collate(self, inputs: Sequence[list[int]]) -> dict[str, Tensor]:
        tokens = torch.tensor(list(inputs))
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    def logits(self, params: Mapping[str, Tensor], batch: dict[str, Tensor], head: Tensor) -> Tensor:
        states = functional_call(self.module, dict(params), kwargs=batch).last_hidden_state
        return 20 * normalize(states.float().mean(1), dim=-1) @ head.T


def main() -> None:
    """Measures, prints a line a ratio and writes results/at_size.json."""
    encoder, rows = Encoder(), []
    for work, faster in measured(encoder):
        rows.append({"work": work, "faster": faster})
        print(f"{work}: {verdict(faster)} times faster", flush=True)
    write("at_size", {"classes": CLASSES, "tasks": TASKS, "batch": BATCH, "ratios": rows})


def measured(encoder: Encoder) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is compared, and how many times faster it is."""
    for labels in ("exact", "sampled"):
        ratio = faster(lambda: one_after_the_other(encoder), lambda labels=labels: together(encoder, labels))
        yield f"Fisher information, {labels} labels", bound(ratio, at_least=FASTER[labels])
    ratio = faster(a_batch_a_task(encoder), one_batch(encoder))
    yield "entropy of all tasks and its gradient", bound(ratio, at_least=FASTER["entropy"])


def faster(before: Callable[[], Any], after: Callable[[], Any]) -> float:
    """The median ratio of the seconds that both take, one right after the other."""
    ratios = []
    for _ in range(REPEATS + 1):
        seconds = []
        for call in (before, after):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:])  # the first pays for what is made once


def together(encoder: Encoder, labels: Labels) -> dict[str, Tensor]:
    """Fisher information as the stage computes it."""
    params, inputs, nowhere = encoder.params(), encoder.inputs[:EXAMPLES], Resume(Path("absent"), "", "")
    backbone: Any = encoder
    return fisher(backbone, dict, params, encoder.head, inputs, labels, 0, nowhere)[0]


def one_after_the_other(encoder: Encoder) -> dict[str, Tensor]:
    """The same, exact, with a backward pass a direction."""
    params = {name: tensor.requires_grad_() for name, tensor in encoder.params().items()}
    totals = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    for tokens in encoder.inputs[:EXAMPLES]:
        (logits,) = encoder.logits(params, encoder.collate([tokens]), encoder.head)
        for direction in exact_directions(logits.detach()):
            found = torch.autograd.grad(logits, list(params.values()), direction, retain_graph=True)
            for total, gradient in zip(totals.values(), found, strict=True):
                total.addcmul_(gradient, gradient)
    return {name: total / EXAMPLES for name, total in totals.items()}


def one_batch(encoder: Encoder) -> Callable[[], Any]:
    """The entropy and its gradient, as adaptive methods take them."""

    def logits(params: Mapping[str, Tensor], batch: dict[str, Tensor]) -> Sequence[Tensor]:
        with autocast():
            return encoder.logits(params, batch, encoder.head).float().chunk(TASKS)

    objective = TotalEntropy(dict, logits, repeat(encoder.collate(encoder.inputs)))
    params = {name: tensor.requires_grad_() for name, tensor in encoder.params().items()}
    return lambda: torch.autograd.grad(objective(params), list(params.values()))


def a_batch_a_task(encoder: Encoder) -> Callable[[], Any]:
    """The same with a forward pass a task."""
    batches = [encoder.collate(encoder.inputs[BATCH * t : BATCH * (t + 1)]) for t in range(TASKS)]
    params = {name: tensor.requires_grad_() for name, tensor in encoder.params().items()}

    def mean(batch: dict[str, Tensor]) -> Tensor:
        with autocast():
            return entropy(encoder.logits(params, batch, encoder.head).float()).mean()

    return lambda: torch.autograd.grad(torch.stack([*map(mean, batches)]).sum(), list(params.values()))


if __name__ == "__main__":
    main()
