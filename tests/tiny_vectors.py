"""Small models to merge, an objective without a network, and every algorithm under every choice it offers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import smooth_l1_loss

from fusion.hyperparameters import algorithms, choices, hyperparameters, method_class
from fusion.methods import load
from fusion.methods.concrete import rescale, sample
from fusion.objectives import Objective
from fusion.vectors import Merged, TaskVectors

Model = dict[str, Tensor]


def model(values: Any, name: str = "w", dtype: torch.dtype = torch.float32) -> Model:
    """A model of one tensor."""
    return {name: torch.tensor(values, dtype=dtype)}


def vectors(*taus: Any, pretrained: Any = None) -> TaskVectors:
    """The task vectors of one tensor 'w' as literal lists; θ0 is zero unless given."""
    theta0 = torch.zeros_like(torch.tensor(taus[0])) if pretrained is None else torch.tensor(pretrained)
    return TaskVectors({"w": theta0}, [{"w": theta0 + torch.tensor(tau)} for tau in taus])


def random_models(
    shapes: Mapping[str, Sequence[int]], tasks: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Model, list[Model]]:
    """θ0 and `tasks` models near it, normally distributed."""
    rng = torch.Generator().manual_seed(seed)
    draws = {name: torch.randn((tasks + 1, *shape), generator=rng) for name, shape in shapes.items()}
    pretrained = {name: draw[0].to(dtype) for name, draw in draws.items()}
    finetuned = [
        {name: (draw[0] + 0.3 * draw[t]).to(dtype) for name, draw in draws.items()} for t in range(1, tasks + 1)
    ]
    return pretrained, finetuned


def copy(tensors: Mapping[str, Tensor]) -> Model:
    """A model that shares no memory with the one given."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def distance(params: Mapping[str, Tensor]) -> Tensor:
    """Σ over layers of the mean Huber distance to 1; finite, with finite gradients, wherever float32 is."""
    each = [smooth_l1_loss(tensor, torch.ones_like(tensor)) for tensor in params.values()]
    return torch.stack([loss.double() for loss in each]).sum()


def merge(algorithm: str, taus: TaskVectors, objective: Objective = distance, seed: int = 0, **hyper: Any) -> Merged:
    """The algorithm's merged model, with what its class needs beside the task vectors."""
    needs: dict[str, tuple[Any, ...]] = {"data-free": (), "unlabelled": (objective,)}
    method: Callable[..., Merged] = load(algorithm)
    return method(taus, *needs[method_class(algorithm)], rng=Generator().manual_seed(seed), **hyper)


def variants() -> list[tuple[str, dict[str, Any]]]:
    """Every algorithm with its defaults, and once with each other value of each of its options; few steps."""
    found = []
    for algorithm in algorithms():
        fields = hyperparameters(algorithm).model_fields
        few = {name: 2 for name in fields if name.endswith("steps")}
        found.append((algorithm, few))
        for name, field in fields.items():
            others = [value for value in choices(hyperparameters(algorithm), name) if isinstance(value, str)]
            found += [(algorithm, few | {name: value}) for value in others if value != field.default]
    return found


def label(variant: object) -> str:
    """How pytest names an algorithm or its hyper-parameters."""
    if isinstance(variant, dict):
        return "-".join(str(value) for value in variant.values() if isinstance(value, str)) or "defaults"
    return str(variant)


def drawn(logits: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The rescaled masks that Concrete draws from these logits."""
    rng = Generator().manual_seed(seed)
    return {name: rescale(sample(x, 0.5, rng)) for name, x in logits.items()}
