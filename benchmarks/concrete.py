"""One Concrete meta-step against the plain formulation, without the model: `python benchmarks/concrete.py`.

Plain, as released: a mask from torch's RelaxedBernoulli, a masked copy of every task vector, their weighted sum,
autograd through all of it, Adam. The model's forward and backward are replaced by a loss with a fixed gradient that
costs nothing. Extra memory is what a step needs beside the task vectors, the logits and Adam's two moments.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from machine import PeakMemory, bound, in_subprocess, verdict, write
from torch import Generator, Tensor

from fusion.methods.adamerging import by_layer, start
from fusion.methods.concrete import fixed_coefficients, inner_step, learn_mask
from fusion.vectors import Layer

KINDS = {"task_arithmetic": "none", "layer_wise": "layer"}
BLOCK = {"qkv": (2304, 768), "out": (768, 768), "up": (3072, 768), "down": (768, 3072), "bias": (768,)}
FASTER = {8: 5.0, 20: 10.0}  # the targets by number of tasks
MEMORY = 0.25

Loss = Callable[[Mapping[str, Tensor]], Tensor]


class FixedGradient(torch.autograd.Function):
    """A loss of zero whose gradient is the tensors given: a model whose forward and backward take no time."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, slopes: list[Tensor], *params: Tensor) -> Tensor:
        ctx.slopes = slopes  # pyright: ignore[reportAttributeAccessIssue]
        return slopes[0].new_zeros(())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.slopes)  # pyright: ignore[reportAttributeAccessIssue]


class Objective:
    """FixedGradient with random slopes; `times` holds when each call began."""

    def __init__(self, layers: list[Layer]) -> None:
        rng = Generator().manual_seed(1)
        self.slopes = {
            layer.name: torch.randn(layer.pretrained.shape, generator=rng).to(layer.pretrained) for layer in layers
        }
        self.times: list[float] = []

    def __call__(self, params: Mapping[str, Tensor]) -> Tensor:
        self.times.append(time.perf_counter())
        return FixedGradient.apply([self.slopes[name] for name in params], *params.values())


def main() -> None:
    """Measures every kind at T = 8 and 20, prints the ratios and writes results/concrete.json."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--blocks", type=int, default=3, help="transformer blocks of 7.1M parameters each")
    arguments.add_argument("--steps", type=int, default=5, help="steps timed; the median counts")
    options = arguments.parse_args()
    found = [compare(kind, tasks, options.blocks, options.steps) for kind in KINDS for tasks in FASTER]
    for row in found:
        print(
            f"{row['kind']:16} T = {row['tasks']:2}: {row['seconds']:.3f} s against {row['plain_seconds']:.3f} s, "
            f"{verdict(row['faster'])}; extra memory {verdict(row['memory'])}"
        )
    write("concrete", {"parameters": options.blocks * sum(map(_size, BLOCK.values())), "steps": found})


def compare(kind: str, tasks: int, blocks: int, steps: int) -> dict[str, Any]:
    """Seconds and extra bytes of a step in both formulations, each in a process of its own."""
    ours, plain = (in_subprocess(measure, kind, tasks, blocks, steps, which) for which in (False, True))
    faster = bound(plain["seconds"] / ours["seconds"], at_least=FASTER[tasks])
    memory = bound(ours["bytes"] / plain["bytes"], at_most=MEMORY)
    return {
        **{"kind": kind, "tasks": tasks, "seconds": ours["seconds"], "plain_seconds": plain["seconds"]},
        **{"extra_bytes": ours["bytes"], "plain_extra_bytes": plain["bytes"], "faster": faster, "memory": memory},
    }


def measure(kind: str, tasks: int, blocks: int, steps: int, plain: bool) -> dict[str, float]:
    """Median seconds a step, from one outer loss to the next, and the extra bytes."""
    layers = list(random_layers(tasks, blocks))
    objective, granularity = Objective(layers), KINDS[kind]
    logits = {layer.name: torch.zeros_like(layer.pretrained, requires_grad=True) for layer in layers}
    rng = Generator().manual_seed(0)
    with PeakMemory() as memory:
        if plain:
            learn_plainly(layers, logits, objective, granularity, 1 + steps)
        else:
            fixed = granularity == "none"
            inner = (layers, objective, granularity, 0.3, "adam", 1.0, "first_order")
            step = fixed_coefficients(layers, 0.3) if fixed else inner_step(*inner)
            learn_mask(logits, objective, step, rng, 0.5, 1 + steps, 1e-3)
    began = objective.times[:: 1 if granularity == "none" else 2]
    seconds = statistics.median(after - before for before, after in itertools.pairwise(began))
    moments = 2 * sum(x.numel() * x.itemsize for x in logits.values())
    return {"seconds": seconds, "bytes": memory.peak - moments}


def learn_plainly(
    layers: list[Layer], logits: dict[str, Tensor], objective: Loss, granularity: str, steps: int
) -> None:
    """Concrete as it is usually written."""
    models = [{layer.name: layer.taus[t] for layer in layers} for t in range(len(layers[0].taus))]
    optimizer = torch.optim.Adam(logits.values(), lr=1e-3)
    temperature = torch.tensor(0.5)
    for _ in range(steps):
        masks = {
            name: torch.distributions.RelaxedBernoulli(temperature, logits=x).rsample() for name, x in logits.items()
        }
        masks = {name: mask / mask.mean() for name, mask in masks.items()}
        weights = start(layers, "layer", 0.3)
        if granularity != "none":
            weights.requires_grad_()
            seen = {name: mask.detach() for name, mask in masks.items()}
            objective(merge_plainly(layers, models, seen, weights)).backward()
            torch.optim.Adam([weights], lr=1.0).step()
            weights.data.clamp_(0, 1)
        optimizer.zero_grad()
        objective(merge_plainly(layers, models, masks, weights)).backward()
        optimizer.step()


def merge_plainly(
    layers: list[Layer], models: list[dict[str, Tensor]], masks: dict[str, Tensor], weights: Tensor
) -> dict[str, Tensor]:
    """θ0 + Σ λ_t (τ_t ⊙ m) with a masked copy of every task vector."""
    copies = [{name: tau * masks[name] for name, tau in model.items()} for model in models]
    rows, merged = by_layer(layers, weights), {}
    for layer in layers:
        merged[layer.name] = layer.pretrained
        for t, copy in enumerate(copies):
            merged[layer.name] = merged[layer.name] + rows[layer.name][t] * copy[layer.name]
    return merged


def random_layers(tasks: int, blocks: int) -> Iterator[Layer]:
    """The layers of a random transformer and `tasks` models of it."""
    rng = Generator().manual_seed(0)
    for block in range(blocks):
        for name, shape in BLOCK.items():
            theta0 = 0.02 * torch.randn(shape, generator=rng)
            yield Layer(f"{block}.{name}", theta0, 0.002 * torch.randn((tasks, *shape), generator=rng))


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


if __name__ == "__main__":
    main()
