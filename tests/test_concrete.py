"""Concrete subspace learning against its formulas, the plain formulation, and finite differences."""

import math
from typing import Any

import pytest
import torch
from test_methods_examples import TAUS
from tiny_network import tiny_network
from tiny_vectors import drawn, merge, random_models, vectors
from torch import Generator, Tensor
from torch.testing import assert_close

from fusion.methods._draws import new_seed
from fusion.methods._mask import logistic
from fusion.methods.adamerging import by_layer, parameters, start
from fusion.methods.concrete import evaluate, fixed_coefficients, rescale, sample, under
from fusion.vectors import Layer, TaskVectors

LINEAR = torch.tensor([1 / 3, 1 / 4, 1 / 2, -1 / 8])  # times Σ τ = [3, 4, -2, 8]: [1, 1, -1, -1]


def linear(params: dict[str, Tensor]) -> Tensor:
    return params["w"] @ LINEAR


@pytest.mark.parametrize(
    ("mask", "expected"), [("expectation", [0.75, 1.0, -1.5, 6.0]), ("binary", [0.0, 0.0, -2.0, 8.0])]
)
def test_one_step_of_concrete_task_arithmetic_by_hand(mask: str, expected: list[float]) -> None:
    # A coordinate with a positive product raises the loss whatever the draw, since the mask's mean divides it. Adam's
    # first step is lr = ln 3 against the sign: x = ln 3 · [-1, -1, 1, 1], σ(x) = [¼, ¼, ¾, ¾], over its mean
    # [½, ½, 3/2, 3/2], times 0.5 Σ τ = [1.5, 2, -1, 4]; 1[x > 0] over its mean is [0, 0, 2, 2].
    settings: Any = {"granularity": "none", "scaling": 0.5, "steps": 1, "lr": math.log(3), "evaluation_mask": mask}
    found = merge("concrete", vectors(*TAUS), objective=linear, **settings)
    assert_close(found.tensors()["w"], torch.tensor(expected))
    assert found.diagnostics["density"] == pytest.approx(0.5)
    assert found.diagnostics["density_by_layer"] == {"w": pytest.approx(0.5)}


def test_sample_is_its_formula() -> None:
    x = torch.tensor([0.5, -1.0, 2.0])
    noise = logistic(torch.empty(3), new_seed(Generator().manual_seed(4)), 0)
    expected = 1 / (1 + torch.exp(-(x + noise) / 0.7))
    assert_close(sample(x, 0.7, Generator().manual_seed(4)), expected)


@pytest.mark.parametrize("x", [-2.0, 0.0, 1.0])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_sample_is_above_one_half_with_the_probability_of_its_logit(x: float, temperature: float) -> None:
    draws = sample(torch.full((40_000,), x), temperature, Generator().manual_seed(0))
    assert draws.min() >= 0 and draws.max() <= 1 and draws.isfinite().all()
    assert (draws > 0.5).float().mean().item() == pytest.approx(1 / (1 + math.exp(-x)), abs=0.01)


def test_evaluation_masks_are_a_draw_the_expectation_or_the_more_likely_value() -> None:
    x, rng = torch.tensor([math.log(3), 0.0, -math.log(3)]), Generator()
    assert_close(evaluate(x, "expectation", 0.5, rng), torch.tensor([0.75, 0.5, 0.25]))
    assert evaluate(x, "binary", 0.5, rng).tolist() == [1.0, 0.0, 0.0]
    assert torch.equal(evaluate(x, "sample", 0.5, rng.manual_seed(1)), sample(x, 0.5, Generator().manual_seed(1)))


def test_a_mask_is_rescaled_by_the_mean_of_its_own_tensor() -> None:
    assert rescale(torch.tensor([1.0, 0.0, 0.5, 0.5])).tolist() == [2.0, 0.0, 1.0, 1.0]
    assert rescale(torch.zeros(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_an_empty_mask_gives_the_pretrained_model() -> None:
    pretrained, finetuned = random_models({"a": (3,), "b": ()}, 2)  # x starts at 0, and 1[0 > 0] is 0
    found = merge("concrete", TaskVectors(pretrained, finetuned), steps=0, adapt_steps=2, evaluation_mask="binary")
    assert_close(found.tensors(), pretrained, rtol=0, atol=0)


def test_without_steps_the_model_is_one_draw_over_its_mean() -> None:
    taus = vectors(*TAUS)
    mask = sample(torch.zeros(4), 0.5, Generator().manual_seed(3))
    found = merge("concrete", taus, seed=3, granularity="none", steps=0).tensors()["w"]
    assert_close(found, 0.3 * torch.tensor([3.0, 4.0, -2.0, 8.0]) * mask / mask.mean())


def test_individual_models_are_read_under_the_same_mask_with_coefficient_one() -> None:
    theta0 = torch.tensor([1.0, 1.0, 1.0, 1.0])
    mask = sample(torch.zeros(4), 0.5, Generator().manual_seed(3))
    merged = merge("concrete", vectors(*TAUS, pretrained=theta0.tolist()), seed=3, steps=0, adapt_steps=0)
    for t, tau in enumerate(TAUS):
        assert_close(merged.individual_tensors(t)["w"], theta0 + torch.tensor(tau) * mask / mask.mean())


def plain(layers: list[Layer], coefficients: Tensor, logits: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The authors' formulation: a masked copy of every task vector, then their weighted sum."""
    rng, rows, params = Generator().manual_seed(seed), by_layer(layers, coefficients), {}
    masks = {name: sample(x, 0.5, rng) for name, x in logits.items()}
    for name, theta0, taus, *_ in layers:
        copies = [taus[t] * masks[name] / masks[name].mean() for t in range(len(taus))]
        params[name] = theta0 + sum(rows[name][t] * copy for t, copy in enumerate(copies))
    return params


def learnt(layers: list[Layer]) -> dict[str, Tensor]:
    """Logits as they may be after some steps."""
    rng = Generator().manual_seed(8)
    draws = {
        layer.name: torch.randn(layer.pretrained.shape, generator=rng, dtype=layer.pretrained.dtype) for layer in layers
    }
    return {name: draw.requires_grad_() for name, draw in draws.items()}


@pytest.mark.parametrize("granularity", ["none", "task", "layer"])
def test_the_linear_cost_form_equals_masked_copies_in_values_and_gradients(granularity: str) -> None:
    taus, objective = tiny_network()
    layers = list(taus.layers())
    logits, coefficients = learnt(layers), start(layers, granularity, 0.3).requires_grad_()
    expected = plain(layers, coefficients, logits, 6)
    wanted = torch.autograd.grad(objective(expected), [coefficients, *logits.values()])
    if granularity == "none":
        found, at = fixed_coefficients(layers, 0.3)(drawn(logits, 6)), [*logits.values()]
    else:
        found, at = parameters(layers, coefficients, under(drawn(logits, 6))), [coefficients, *logits.values()]
    assert_close(found, expected)
    assert_close(torch.autograd.grad(objective(found), at), wanted[-len(at) :])


@pytest.mark.parametrize("granularity", ["none", "task", "layer"])
def test_learning_lowers_the_entropy_of_the_merged_model(granularity: str) -> None:
    taus, objective = tiny_network(dtype=torch.float32)
    hyper: Any = {
        "granularity": granularity,
        "evaluation_mask": "expectation",
        "inner_optimizer": "sgd",
        "inner_lr": 0.1,
    }
    before = merge("concrete", taus, objective, steps=0, adapt_steps=0, **hyper).tensors()
    merged = merge("concrete", taus, objective, steps=30, lr=0.1, adapt_steps=20, adapt_lr=0.02, **hyper)
    assert objective(merged.tensors()).item() < 0.95 * objective(before).item()
    assert len(merged.diagnostics["mask_entropy"]) == 30
    assert len(merged.diagnostics.get("entropy", [])) == (0 if granularity == "none" else 20)
    assert set(merged.diagnostics["density_by_layer"]) == set(taus.pretrained)


def test_a_number_of_coefficients_follows_the_granularity() -> None:
    taus, objective = tiny_network(dtype=torch.float32)
    few: Any = {"steps": 1, "adapt_steps": 1}
    assert "coefficients" not in merge("concrete", taus, objective, granularity="none", **few).diagnostics
    task = merge("concrete", taus, objective, granularity="task", **few).diagnostics["coefficients"]
    layer = merge("concrete", taus, objective, granularity="layer", **few).diagnostics["coefficients"]
    assert list(task) == ["all"] and len(task["all"]) == 2
    assert set(layer) == set(taus.pretrained)


def test_density_is_that_of_all_coordinates_and_of_each_layer() -> None:
    taus = TaskVectors(*random_models({"a": (3,), "b": (1,)}, 2))

    def only_b(params: dict[str, Tensor]) -> Tensor:  # one coordinate: its mask is 1 whatever x, so nothing moves
        return params["b"].sum()

    found = merge("concrete", taus, only_b, steps=2, adapt_steps=0).diagnostics
    assert found["density"] == pytest.approx(0.5) and found["density_by_layer"] == {"a": 0.5, "b": pytest.approx(0.5)}
