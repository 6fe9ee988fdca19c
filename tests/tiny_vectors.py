"""Small models to merge, an objective without a network, and every algorithm under every choice it offers."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
import yaml
from laws import SHORT
from torch import Generator, Tensor
from torch.nn.functional import smooth_l1_loss

from fusion import methods
from fusion.hyperparameters import choices, fields, hyperparameters
from fusion.methods.concrete import rescale, sample
from fusion.objectives import Objective
from fusion.pipelines import algorithms, kind, prefix
from fusion.plan import ROWS
from fusion.vectors import Merged, TaskModels, TaskVectors

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


def merge(
    pipeline: str, taus: TaskVectors, objective: Objective = distance, seed: int = 0, **values: Any
) -> Merged | TaskModels:
    """What the pipeline makes of the task vectors, with what its parts need beside them."""
    return methods.merge(pipeline, taus, rng=Generator().manual_seed(seed), given=given(taus, objective), values=values)


def given(taus: TaskVectors, objective: Objective) -> dict[str, Any]:
    """Everything that a method may need beside task vectors, made from the models' tensors without a network."""

    def gram(task: int, name: str) -> Tensor:
        features = taus.finetuned[task][name].float().tanh()
        return features.T @ features

    names = [name for name, tensor in taus.pretrained.items() if tensor.is_floating_point()]
    matrices = [name for name in names if taus.pretrained[name].dim() == 2]
    return {
        "objective": objective,
        "loss": lambda params, tasks=None: objective(params),
        "fishers": [{name: model[name].float().sigmoid() for name in names} for model in taus.finetuned],
        "grams": [{name: gram(t, name) for name in matrices} for t in range(len(taus.finetuned))],
        "merged_grams": {n: torch.stack([gram(t, n) for t in range(len(taus.finetuned))]) for n in matrices},
    }


def tensors(merged: Merged | TaskModels, order: Sequence[int] | None = None) -> Model:
    """All tensors of the merged model; of one model a task, every task's under a name of its own.

    order: the number of the task that each task vector is of, where they were given in another order.
    """
    if isinstance(merged, Merged):
        return merged.tensors()
    order = order or range(len(merged.vectors))
    found = {t: merged.for_task(place).tensors() for place, t in enumerate(order)}
    return {f"{name} of {t}": tensor for t in sorted(found) for name, tensor in found[t].items()}


def runnable(algorithm: str) -> str:
    """The algorithm in a pipeline that merges: a transform is followed by a sum, an adjustment preceded by one."""
    return {"transform": f"{algorithm} + task_arithmetic", "adjust": f"task_arithmetic + {algorithm}"}.get(
        kind(algorithm), algorithm
    )


@cache
def pipelines() -> list[str]:
    """Every algorithm, made to merge, and every other pipeline of a row of config/methods.yaml."""
    rows = yaml.safe_load((ROWS / "methods.yaml").read_text(encoding="utf-8")).values()
    return list(dict.fromkeys([*map(runnable, algorithms()), *(row["algorithm"] for row in rows)]))


def variants() -> list[Any]:
    """Every algorithm with its defaults, and once with each other value of each of its options; pipelines of several
    with their defaults (slow, being many); few steps. Parameters of a test: the pipeline and its hyper-parameters."""
    found = []
    for algorithm in algorithms():
        pipeline = runnable(algorithm)
        start, known = prefix(pipeline, algorithm), hyperparameters(algorithm)
        few = {start + name: 2 for name in known.model_fields if name.endswith("steps")}
        few |= {start + name: value for name, value in SHORT.get(algorithm, {}).items()}
        found.append(pytest.param(pipeline, few))
        for name, field in known.model_fields.items():
            others = [value for value in choices(known, name) if isinstance(value, str)]
            each = (few | {start + name: value} for value in others if value != field.default)
            found += [pytest.param(pipeline, hyper, marks=pytest.mark.slow) for hyper in each]
    for pipeline in pipelines()[len(algorithms()) :]:
        few = {name: 2 for name in fields(pipeline) if name.endswith("steps")}
        found.append(pytest.param(pipeline, few, marks=pytest.mark.slow))
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
