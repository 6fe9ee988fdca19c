"""The two levels of Concrete subspace learning: the step on the coefficients, and the mask's gradient through it."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_network import tiny_network
from tiny_vectors import drawn, merge, vectors
from torch import Generator, Tensor
from torch.testing import assert_close

from fusion.methods.concrete import inner_step
from fusion.vectors import TaskVectors


class Recorder:
    """An objective that notes the parameters of every call: inner, outer, inner, outer, …"""

    def __init__(self, objective: Callable[[dict[str, Tensor]], Tensor]) -> None:
        self.objective, self.seen = objective, []

    def __call__(self, params: dict[str, Tensor]) -> Tensor:
        self.seen.append(params["w"].detach())
        return self.objective(params)


SPLIT = [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]  # λ_1 m / mean(m) shows in the first half, λ_2 in the second


@pytest.mark.parametrize("granularity", ["task", "layer"])
@pytest.mark.parametrize("meta_gradient", ["first_order", "second_order"])
def test_the_inner_adam_step_of_rate_one_makes_every_coefficient_zero_or_one(granularity, meta_gradient) -> None:
    recorder = Recorder(lambda params: params["w"] @ torch.tensor([1.0, 2.0, -3.0, -1.0]))  # λ_1 falls, λ_2 rises
    merge(
        "concrete",
        vectors(*SPLIT),
        recorder,
        steps=3,
        adapt_steps=0,
        granularity=granularity,
        meta_gradient=meta_gradient,
    )
    for inner, outer in zip(recorder.seen[::2], recorder.seen[1::2], strict=True):
        assert_close(outer[:2], torch.zeros(2), rtol=0, atol=0)
        assert_close(outer[2:], inner[2:] / 0.3)


def test_coefficients_start_anew_in_every_outer_step() -> None:
    recorder = Recorder(lambda params: params["w"] @ torch.tensor([1.0, 2.0, -3.0, -1.0]))
    merge("concrete", vectors(*SPLIT), recorder, steps=4, adapt_steps=0, scaling=0.4)
    assert len(recorder.seen) == 8
    for inner in recorder.seen[::2]:  # m / mean(m) has mean one, so the mean is λ = 0.4 for both halves alike
        assert inner.mean().item() == pytest.approx(0.4, rel=1e-5)


def test_the_inner_sgd_step_follows_the_gradient() -> None:
    direction = torch.tensor([1.0, 2.0, -3.0, -1.0])
    recorder = Recorder(lambda params: params["w"] @ direction)
    merge("concrete", vectors(*SPLIT), recorder, steps=1, adapt_steps=0, inner_optimizer="sgd", inner_lr=0.01)
    mask = recorder.seen[0] / 0.3
    moved = [0.3 - 0.01 * (direction * mask)[half].sum().item() for half in (slice(0, 2), slice(2, 4))]
    assert_close(recorder.seen[1], mask * torch.tensor(moved).repeat_interleave(2))


def outer_loss(x: Tensor, taus: TaskVectors, objective: Any, granularity: str, meta: str, optimizer: str) -> Tensor:
    """The bi-level objective as a function of all logits, one after the other."""
    layers = list(taus.layers())
    parts = x.split([layer.pretrained.numel() for layer in layers])
    logits = {layer.name: part.reshape(layer.pretrained.shape) for layer, part in zip(layers, parts, strict=True)}
    step = inner_step(layers, objective, granularity, 0.3, optimizer, 0.1, meta)
    return objective(step(drawn(logits, 2)))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("granularity", ["task", "layer"])
@pytest.mark.parametrize("kind", ["two layers", "attention"])
def test_second_order_is_the_gradient_of_the_bilevel_objective(kind: str, granularity: str, optimizer: str) -> None:
    taus, objective = tiny_network(kind)
    x = torch.randn(taus.count(), dtype=torch.float64, generator=Generator().manual_seed(1)).requires_grad_()
    loss = functools.partial(outer_loss, taus=taus, objective=objective, granularity=granularity, optimizer=optimizer)
    (exact,) = torch.autograd.grad(loss(x, meta="second_order"), x)
    (first_order,) = torch.autograd.grad(loss(x, meta="first_order"), x)
    at, width = x.detach(), 1e-5
    nudges = torch.eye(len(at), dtype=at.dtype) * width
    slopes = [
        (loss(at + n, meta="second_order") - loss(at - n, meta="second_order")).item() / (2 * width) for n in nudges
    ]
    assert_close(exact, torch.tensor(slopes, dtype=at.dtype), rtol=1e-5, atol=1e-8)
    if optimizer == "sgd":
        assert (exact - first_order).norm() > 1e-3 * exact.norm()
    else:  # sgn of the gradient does not move with x, which is why it hardly matters for the authors' inner step
        assert_close(exact, first_order, rtol=1e-3, atol=1e-6)
