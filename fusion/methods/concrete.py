"""Concrete subspace learning: one mask, shared by all task vectors, learned bi-level on unlabelled inputs.

Tang et al., arXiv 2312.06173, algorithm 1. With logits x (one a parameter), u ~ U(0, 1) and temperature β:

    m = σ((x + log u − log(1 − u)) / β),   τ̂_t = τ_t ⊙ m / mean(m) (mean over one tensor),
    inner:  λ' = one optimizer step from λ0 on H(θ0 + Σ λ_t τ̂_t),   outer:  one Adam step on x of H(θ0 + Σ λ'_t τ̂_t),

H the entropy summed over the tasks, on a new batch each. Then, where λ is learned, `adapt_steps` on λ under the
mask. Since the mask is shared, θ_l = θ0_l + m / mean(m) ⊙ Σ λ_t τ_t: a step costs O(P) for task arithmetic, where
Σ λ τ_t is summed once and no τ_t kept, and two matrix-vector products a layer otherwise, one for the gradient of λ
and one for Σ λ'_t τ_t; no task vector is ever copied masked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusion.held import held, read
from fusion.hyperparameters import Rate, Scaling, Steps, Temperature
from fusion.methods._mask import draw, rescale, sample, to_logits
from fusion.methods.adamerging import Combine, as_numbers, by_layer, learn_coefficients, start, weighted_sum
from fusion.objectives import Objective
from fusion.vectors import Layer, Merged, TaskVectors, device_of

Masks = dict[str, Tensor]  # by layer name: (*shape)


def concrete(
    taus: TaskVectors,
    objective: Objective,
    *,
    rng: Generator,
    granularity: Literal["none", "task", "layer"] = "layer",
    scaling: Scaling = 0.3,
    temperature: Temperature = 0.5,
    steps: Steps = 2000,
    lr: Rate = 1e-3,
    inner_optimizer: Literal["adam", "sgd"] = "adam",
    inner_lr: Rate = 1.0,
    meta_gradient: Literal["first_order", "second_order"] = "first_order",
    adapt_steps: Steps = 1000,
    adapt_lr: Rate = 1e-3,
    evaluation_mask: Literal["sample", "expectation", "binary"] = "sample",
) -> Merged:
    """The merged model under the learned mask.

    granularity: 'none' is Concrete task arithmetic (λ stays at `scaling`), 'task' and 'layer' are Concrete
    AdaMerging. inner_optimizer 'adam' with inner_lr 1 is close to what the authors ran: one fresh step moves every
    λ by ±1, which the clamp to [0, 1] then makes 0 or 1. (Their code keeps Adam's moments from step to step, takes
    the inner gradient at the λ' before, and draws the mask anew for the outer loss.) meta_gradient 'second_order'
    differentiates the outer loss through the inner step, which says something of 'sgd' alone (Adam's first step is
    a sign, flat almost everywhere); 'first_order', the authors' code, takes λ' for a constant. evaluation_mask: one
    soft random draw (the authors' code), σ(x) (the expected binary mask), or 1[x > 0].
    """
    if granularity == "none":
        layers = [layer._replace(taus=layer.taus.sum(0, keepdim=True)) for layer in taus.layers()]
        step = fixed_coefficients(layers, scaling)
    else:
        layers = held(taus)
        step = inner_step(layers, objective, granularity, scaling, inner_optimizer, inner_lr, meta_gradient)
    by_name = sorted(layers, key=lambda layer: layer.name)  # the order of draws must not depend on that of a file
    logits = {layer.name: layer.pretrained.new_zeros(layer.pretrained.shape).requires_grad_() for layer in by_name}
    losses = learn_mask(logits, objective, step, rng, temperature, steps, lr)
    masks = {name: rescale(evaluate(x.detach(), evaluation_mask, temperature, rng)) for name, x in logits.items()}
    found, learned = start(layers, "task", scaling), {}
    if granularity != "none":
        found, learned = learn_coefficients(
            layers, objective, under(masks), granularity, scaling, adapt_steps, adapt_lr
        )
    rows, diagnostics = by_layer(layers, found), {"mask_entropy": losses} | densities(logits) | learned
    merged = taus.map(
        lambda layer: weighted_sum(rows[layer.name].expand(len(taus)), layer) * masks[layer.name], diagnostics
    )
    return replace(merged, individual=lambda t, layer: layer.taus[t] * masks[layer.name])


# rescaled masks -> merged parameters, differentiable in the masks
Step = Callable[[Masks], dict[str, Tensor]]


def fixed_coefficients(layers: list[Layer], scaling: float) -> Step:
    """Concrete task arithmetic: θ0 + m / mean(m) ⊙ λ Σ τ_t with the sum taken once."""
    sums = {layer.name: scaling * read(lambda _, taus: taus.sum(0), [layer.taus], layer.pretrained) for layer in layers}
    return lambda masks: {layer.name: masked(layer, sums[layer.name], masks) for layer in layers}


def inner_step(
    layers: list[Layer],
    objective: Objective,
    granularity: str,
    scaling: float,
    optimizer: str,
    lr: float,
    meta_gradient: str,
) -> Step:
    """Concrete AdaMerging: one step on λ, from `scaling` anew each time, then the parameters at that λ'."""
    exact = meta_gradient == "second_order"
    before = fixed_coefficients(layers, scaling)

    def descend(gradient: Tensor) -> Tensor:
        direction = gradient if optimizer == "sgd" else gradient / (gradient.abs() + 1e-8)
        return (scaling - lr * direction).clamp(0, 1)

    def step(masks: Masks) -> dict[str, Tensor]:
        seen = masks if exact else {name: mask.detach() for name, mask in masks.items()}
        with _twice_differentiable(exact):
            params = {name: theta.requires_grad_() for name, theta in before(seen).items()}
            slopes = torch.autograd.grad(objective(params), list(params.values()), None, None, exact, allow_unused=True)
        gradients = (
            slope_of_coefficients(layer, slope, seen[layer.name]) for layer, slope in zip(layers, slopes, strict=True)
        )
        if granularity == "task":
            gradients = [torch.stack(list(gradients)).sum(0)] * len(layers)
        combine = under(masks)  # layer by layer as its gradient is known, while its task vectors are in the cache
        return {layer.name: combine(layer, descend(g)) for layer, g in zip(layers, gradients, strict=True)}

    return step


def slope_of_coefficients(layer: Layer, slope: Tensor | None, mask: Tensor) -> Tensor:
    """∂H/∂λ (T,) of ∂H/∂θ_l = slope: every task vector's product with slope ⊙ m / mean(m)."""
    if slope is None:
        return layer.pretrained.new_zeros(len(layer.taus))
    return read(lambda along, taus: taus.reshape(len(taus), -1) @ along.reshape(-1), [layer.taus], slope * mask)


def learn_mask(
    logits: Masks, objective: Objective, step: Step, rng: Generator, temperature: float, steps: int, lr: float
) -> list[float]:
    """The outer losses; `logits` are optimised in place by Adam."""
    is_fused = device_of(logits).type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(logits.values(), lr=lr, fused=is_fused)
    masks = {name: torch.empty_like(x, requires_grad=True) for name, x in logits.items()}
    losses = []
    for _ in range(steps):
        means = draw(logits, masks, temperature, rng)
        loss = objective(step(masks))
        slopes = torch.autograd.grad(loss, list(masks.values()), allow_unused=True)  # a layer may not matter
        for (name, x), slope in zip(logits.items(), slopes, strict=True):
            x.grad = None if slope is None else to_logits(slope, masks[name], means[name], temperature)
        optimizer.step()
        losses.append(loss.detach())
    return as_numbers(losses)


def under(masks: Masks) -> Combine:
    """θ0_l + m / mean(m) ⊙ Σ λ_t τ_t as a function of a layer and its λ (T,)."""
    return lambda layer, row: masked(layer, weighted_sum(row, layer), masks)


def masked(layer: Layer, update: Tensor, masks: Masks) -> Tensor:
    """θ0_l + m / mean(m) ⊙ update."""
    return torch.addcmul(layer.pretrained, masks[layer.name], update)


def evaluate(logits: Tensor, kind: str, temperature: float, rng: Generator) -> Tensor:
    """The mask the merged model is read with."""
    if kind == "sample":
        return sample(logits, temperature, rng)
    return logits.sigmoid() if kind == "expectation" else (logits > 0).to(logits.dtype)


def densities(logits: Masks) -> dict[str, Any]:
    """The expected fraction of coordinates kept, σ(x), in all and by layer."""
    expected = {name: x.detach().sigmoid() for name, x in logits.items()}
    kept = dict(zip(expected, as_numbers([mask.sum() for mask in expected.values()]), strict=True))
    return {
        "density": sum(kept.values()) / max(1, sum(mask.numel() for mask in expected.values())),
        "density_by_layer": {name: kept[name] / max(1, mask.numel()) for name, mask in expected.items()},
    }


@contextmanager
def _twice_differentiable(wanted: bool) -> Iterator[None]:
    """Fused attention kernels have no second derivative; the plain one has."""
    if not wanted:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield
