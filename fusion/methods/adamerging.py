"""AdaMerging: merging coefficients learned on unlabelled inputs.

Yang et al., ICLR 2024, arXiv 2310.02575, equations 5 to 7:
min over λ of Σ_t E_x H(softmax f_t(x; θ)),  θ_l = θ0_l + Σ_t λ_t^l τ_t^l,  λ in [0, 1], by Adam from λ = 0.3.

λ is projected onto [0, 1] after each step; the authors' code lets it leave and clamps it where it is used.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from fusion.held import held, read
from fusion.hyperparameters import Rate, Scaling, Steps
from fusion.objectives import Objective
from fusion.vectors import Layer, Merged, TaskVectors


def adamerging(
    taus: TaskVectors,
    objective: Objective,
    *,
    rng: Generator,
    granularity: Literal["task", "layer"] = "layer",
    scaling: Scaling = 0.3,
    steps: Steps = 500,
    lr: Rate = 1e-3,
) -> Merged:
    """The model at the learned coefficients: one a task, or one a task and layer (a layer is one named tensor).

    objective: parameters -> mean entropy in nats, summed over the tasks, on its next batches; scaling: the
    initial λ; lr: Adam's. The diagnostics hold the coefficients and how many of them ended at 0 or 1.
    """
    layers = held(taus)
    coefficients, diagnostics = learn_coefficients(layers, objective, combine, granularity, scaling, steps, lr)
    rows = by_layer(layers, coefficients)
    return taus.map(lambda layer: weighted_sum(rows[layer.name], layer), diagnostics)


Combine = Callable[[Layer, Tensor], Tensor]  # a layer and its λ (T,) -> θ_l (*shape)


def combine(layer: Layer, coefficients: Tensor) -> Tensor:
    """θ0_l + Σ_t λ_t τ_t."""
    return layer.pretrained + weighted_sum(coefficients, layer)


def weighted_sum(coefficients: Tensor, layer: Layer) -> Tensor:
    """Σ_t λ_t τ_t of one layer, one matrix-vector product: λ (T,) -> (*shape)."""
    return read(lambda row, taus: torch.tensordot(row, taus, dims=1), [layer.taus], coefficients.to(layer.pretrained))


def start(layers: list[Layer], granularity: str, scaling: float) -> Tensor:
    """The initial λ: (T,) for task, (L, T) for layer; in the precision of the task vectors."""
    count, like = len(layers[0].taus), layers[0].pretrained
    return like.new_full((count,) if granularity == "task" else (len(layers), count), scaling)


def by_layer(layers: list[Layer], coefficients: Tensor) -> dict[str, Tensor]:
    """The λ (T,) of every layer by its name."""
    rows = coefficients.expand(len(layers), -1) if coefficients.dim() == 1 else coefficients
    return {layer.name: row for layer, row in zip(layers, rows, strict=True)}


def parameters(layers: list[Layer], coefficients: Tensor, combine: Combine) -> dict[str, Tensor]:
    """The merged parameters by name, differentiable in λ."""
    rows = by_layer(layers, coefficients)
    return {layer.name: combine(layer, rows[layer.name]) for layer in layers}


def as_numbers(values: list[Tensor]) -> list[float]:
    """Scalars of one device as numbers, for all of which the host waits once."""
    return torch.stack(values).tolist() if values else []


def learn_coefficients(
    layers: list[Layer],
    objective: Objective,
    combine: Combine,
    granularity: str,
    scaling: float,
    steps: int,
    lr: float,
) -> tuple[Tensor, dict[str, Any]]:
    """The λ that `steps` of projected Adam reach, and the diagnostics to report."""
    coefficients = start(layers, granularity, scaling).requires_grad_()
    optimizer = torch.optim.Adam([coefficients], lr=lr)
    losses = []
    for _ in range(steps):
        loss = objective(parameters(layers, coefficients, combine))
        (coefficients.grad,) = torch.autograd.grad(loss, [coefficients])
        optimizer.step()
        coefficients.data.clamp_(0, 1)
        losses.append(loss.detach())
    found = coefficients.detach()
    at_bounds = int(((found == 0) | (found == 1)).sum())
    names = ["all"] if granularity == "task" else [layer.name for layer in layers]
    rows = dict(zip(names, found.reshape(len(names), -1).tolist(), strict=True))
    return found, {"coefficients": rows, "coefficients_at_bounds": at_bounds, "entropy": as_numbers(losses)}
