"""Steps of Concrete and AdaMerging on the network, against a bare loop, and against a masked copy of every task vector.

The bare loop is the forward and backward of all tasks' batches at given parameters, as often as a step has them. Extra
memory is measured without the network, as in benchmarks/concrete.py: beside task vectors, logits and Adam's moments.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import repeat

import concrete as benchmark
import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from fusion.device import autocast
from fusion.held import held
from fusion.methods.adamerging import combine, learn_coefficients
from fusion.methods.concrete import fixed_coefficients, inner_step, learn_mask
from fusion.objectives import Objective, TotalEntropy
from fusion.vectors import Layer
from on_gpu.measure import extra_bytes, side_by_side
from on_gpu.setup import Figures, Rows, Setup

LAYER_WISE, CONCRETE_SUM = "Concrete layer-wise, a meta-step", "Concrete task arithmetic, a meta-step"
ADAMERGING = "AdaMerging layer-wise, a step"
GOALS = {LAYER_WISE: 40.0, ADAMERGING: 15.0}  # ms
FASTER, MEMORY = 10.0, 0.25


def rows(setup: Setup) -> Rows:
    """The layer-wise step first: the table's most important."""
    layers = held(setup.taus)
    objective = entropy(setup, setup.tower())
    yield LAYER_WISE, partial(concrete, setup, layers, objective, "layer")
    yield ADAMERGING, partial(adamerging, setup, layers, objective)
    yield CONCRETE_SUM, partial(concrete, setup, layers, objective, "none")


def concrete(setup: Setup, layers: list[Layer], objective: Objective, granularity: str) -> Figures:
    """A meta-step beside the authors' formulation and the bare loop."""
    is_aim = granularity == "layer"  # of the goals
    steps = {"ours": setup.sizes.steps, "authors": max(1, setup.sizes.steps // 5), "bare": setup.sizes.steps}
    works = {
        "ours": partial(ours, layers, objective, granularity, steps["ours"]),
        "authors": partial(authors, layers, objective, granularity, steps["authors"]),
        "bare": partial(bare, layers, objective, (2 if is_aim else 1) * steps["bare"]),
    }
    times = side_by_side(works, setup.place, setup.sizes.repeats)
    ms = {name: 1000 * spent / steps[name] for name, spent in times.items()}
    extra = {name: memory(setup, work, layers, granularity) for name, work in (("ours", ours), ("authors", authors))}
    return {
        "ms": setup.goal(ms["ours"], at_most=GOALS[LAYER_WISE] if is_aim else None),
        "authors' ms": setup.goal(ms["authors"]),
        "times faster than the authors'": setup.goal(ms["authors"] / ms["ours"], at_least=FASTER if is_aim else None),
        "of a bare loop": setup.goal(ms["ours"] / ms["bare"]),
        "extra GB": setup.goal(extra["ours"] / 1e9),
        "of the authors' extra memory": setup.goal(
            extra["ours"] / max(extra["authors"], 1), at_most=MEMORY if is_aim else None
        ),
    }


def memory(setup: Setup, work: Callable[..., None], layers: list[Layer], granularity: str) -> int:
    """The bytes that two steps take beside task vectors, logits and moments, at most, with a loss that takes none."""
    taken = extra_bytes(partial(work, layers, benchmark.Objective(layers), granularity, 2), setup.place)
    return max(0, taken - state_bytes(layers))


def adamerging(setup: Setup, layers: list[Layer], objective: Objective) -> Figures:
    """A step beside the bare loop."""
    steps = setup.sizes.steps
    works = {
        "ours": partial(learn_coefficients, layers, objective, combine, "layer", 0.3, steps, 1e-3),
        "bare": partial(bare, layers, objective, steps),
    }
    times = side_by_side(works, setup.place, setup.sizes.repeats)
    return {
        "ms": setup.goal(1000 * times["ours"] / steps, at_most=GOALS[ADAMERGING]),
        "of a bare loop": setup.goal(times["ours"] / times["bare"]),
        "bare ms": setup.goal(1000 * times["bare"] / steps),
        "extra GB, network included": setup.goal(extra_bytes(works["ours"], setup.place) / 1e9),
    }


def ours(layers: list[Layer], objective: Objective, granularity: str, steps: int) -> None:
    """Meta-steps of this package."""
    fixed = fixed_coefficients(layers, 0.3) if granularity == "none" else None
    step = fixed or inner_step(layers, objective, granularity, 0.3, "adam", 1.0, "first_order")
    learn_mask(logits(layers), objective, step, Generator().manual_seed(0), 0.5, steps, 1e-3)


def authors(layers: list[Layer], objective: Objective, granularity: str, steps: int) -> None:
    """Meta-steps of the authors' formulation."""
    benchmark.learn_plainly(layers, logits(layers), objective, granularity, steps)


def bare(layers: list[Layer], objective: Objective, steps: int) -> None:
    """Forwards and backwards of all tasks at θ0."""
    params = {layer.name: layer.pretrained.clone().requires_grad_() for layer in layers}
    for _ in range(steps):
        torch.autograd.grad(objective(params), list(params.values()), allow_unused=True)


def logits(layers: list[Layer]) -> dict[str, Tensor]:
    """The mask's logits at their start."""
    return {layer.name: torch.zeros_like(layer.pretrained, requires_grad=True) for layer in layers}


def state_bytes(layers: list[Layer]) -> int:
    """The logits and Adam's two moments, in bytes."""
    return 3 * sum(layer.pretrained.nbytes for layer in layers)


def entropy(setup: Setup, network: nn.Module) -> TotalEntropy:
    """The entropy of the network's predictions, summed over the tasks, on the same pictures at every call."""
    head, batch = setup.head(), setup.pixels(setup.sizes.tasks, setup.sizes.unlabelled).flatten(0, 1)

    def scores(weights: Mapping[str, Tensor], batch: Tensor) -> Sequence[Tensor]:
        with autocast():
            found = functional_call(network, dict(weights), kwargs={"pixel_values": batch}).image_embeds
        return (100 * nn.functional.normalize(found.float(), dim=-1) @ head.T).chunk(setup.sizes.tasks)

    return TotalEntropy(dict, scores, repeat(batch))
