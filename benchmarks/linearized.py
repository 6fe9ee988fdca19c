"""A training step of L-LoRA against one of LoRA, and against L-LoRA by forward-mode differentiation:
`python benchmarks/linearized.py`.

The same MiniLM-sized network and batch for all; their steps are interleaved, and medians compared. The forward-mode
formulation is that of the paper's code: the whole LoRA layer, frozen weight included, is linearized by torch.func.jvp.
With adapters on query and value alone, as in the paper, most of a step is spent elsewhere; with adapters on every
linear layer of a block the two formulations themselves are compared.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import bound, verdict, write
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.func import functional_call, jvp
from transformers import BertConfig, BertModel

from fusion.modes import attach, initialise

ADAPTER = {"r": 16, "alpha": 32, "dropout": 0.0, "init_lora_weights": True}
ATTENTION, ALL = ["query", "value"], ["query", "key", "value", "dense"]
AT_MOST, AT_LEAST = 1.05, 2.0


def main() -> None:
    """Measures, prints, and writes results/linearized.json."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--steps", type=int, default=30, help="steps of each; the medians count")
    options = arguments.parse_args()
    seconds = measured(options.steps, ("lora", "l_lora", "jvp"), ATTENTION)
    everywhere = measured(options.steps, ("l_lora", "jvp"), ALL)
    against = bound(seconds["l_lora"] / seconds["lora"], at_most=AT_MOST)
    slower = bound(everywhere["jvp"] / everywhere["l_lora"], at_least=AT_LEAST)
    little = seconds["jvp"] / seconds["l_lora"]
    print(f"L-LoRA over LoRA: {verdict(against)}; jvp over L-LoRA: {verdict(slower)} (query and value: {little:.2f})")
    found = {"l_lora_over_lora": against, "jvp_over_l_lora": slower, "jvp_over_l_lora_query_value": little}
    write("linearized", {"seconds": seconds, "seconds_all_linear": everywhere, **found})


def measured(steps: int, kinds: tuple[str, ...], targets: list[str]) -> dict[str, float]:
    """The median seconds of a step of each kind."""
    with tempfile.TemporaryDirectory() as name:
        run = {kind: stepper(kind, targets, Path(name) / kind) for kind in kinds}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(steps + 2):
        for kind, step in run.items():
            began = time.perf_counter()
            step()
            times[kind].append(time.perf_counter() - began)
    return {kind: statistics.median(found[2:]) for kind, found in times.items()}


def stepper(kind: str, targets: list[str], folder: Path) -> Callable[[], None]:
    """A function that trains the network for one step in a mode."""
    mode: dict[str, Any] = {"adapter": {**ADAPTER, "target_modules": targets}, "linearized": kind == "l_lora"}
    folder.mkdir()
    initialise(random_network(), mode, 0, folder)
    network = random_network()
    trained = list(attach(network, mode, folder).values())
    if kind == "jvp":
        for name, layer in list(network.named_modules()):
            if isinstance(layer, LoraLayer):
                network.set_submodule(name, ForwardMode(layer))
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    inputs, labels = torch.randint(0, 1000, (16, 32)), torch.randn(16, 384)

    def step() -> None:
        loss = (network(inputs).last_hidden_state.mean(1) - labels).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def random_network() -> BertModel:
    """A network of MiniLM-L6's size."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertModel(BertConfig(vocab_size=1000, attn_implementation="eager", **sizes, **dropout))


class ForwardMode(nn.Module):
    """A layer's first-order expansion around the parameters that it has now."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.start = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}

    def forward(self, inputs: Tensor) -> Tensor:
        moved = {name: parameter - self.start[name] for name, parameter in self.layer.named_parameters()}
        value, slope = jvp(lambda params: functional_call(self.layer, params, inputs), (self.start,), (moved,))
        return value + slope


if __name__ == "__main__":
    main()
