"""AdaMerging by hand, and against a plain loop over torch's own Adam."""

import pytest
import torch
from test_methods_examples import TAUS
from tiny_network import tiny_network
from tiny_vectors import merge, random_models, vectors
from torch.testing import assert_close

from fusion.vectors import TaskVectors


def first(params: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first coordinate."""
    return params["w"][0]


@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_one_step_on_three_tasks_by_hand(granularity: str) -> None:
    # the gradient in λ is the first coordinate of each τ: 4, 1, -2; Adam's first step is lr times its sign, so
    # λ = 0.2, 0.2, 0.4 and θ = 0.2 [4, -1, 2, 0] + 0.2 [1, 3, -5, 2] + 0.4 [-2, 2, 1, 6]
    found = merge("adamerging", vectors(*TAUS), objective=first, granularity=granularity, steps=1, lr=0.1)
    assert_close(found.tensors()["w"], torch.tensor([0.2, 1.2, -0.2, 2.8]))
    assert_close(torch.tensor(list(found.diagnostics["coefficients"].values())), torch.tensor([[0.2, 0.2, 0.4]]))


def test_coefficients_stay_between_zero_and_one_and_the_bounds_are_counted() -> None:
    found = merge("adamerging", vectors(*TAUS), objective=first, steps=20, lr=0.1)
    assert found.diagnostics["coefficients"] == {"w": [0.0, 0.0, 1.0]}
    assert found.diagnostics["coefficients_at_bounds"] == 3
    assert found.tensors()["w"].tolist() == TAUS[2]


@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_agrees_with_a_plain_loop_over_adam(granularity: str) -> None:
    taus, objective = tiny_network(dtype=torch.float32)
    rows = 1 if granularity == "task" else len(taus.pretrained)
    coefficients = torch.full((rows, 2), 0.3, requires_grad=True)
    adam = torch.optim.Adam([coefficients], lr=0.05)

    def plain() -> dict[str, torch.Tensor]:
        params = {}
        for i, (name, theta0) in enumerate(taus.pretrained.items()):
            row = coefficients[i if granularity == "layer" else 0]
            params[name] = theta0 + sum(row[t] * (taus.finetuned[t][name] - theta0) for t in range(2))
        return params

    losses = []
    for _ in range(12):
        adam.zero_grad()
        loss = objective(plain())
        loss.backward()
        adam.step()
        with torch.no_grad():
            coefficients.clamp_(0, 1)
        losses.append(loss.item())
    found = merge("adamerging", taus, objective=objective, granularity=granularity, steps=12, lr=0.05)
    assert_close(found.tensors(), {name: tensor.detach() for name, tensor in plain().items()}, rtol=1e-4, atol=1e-5)
    assert found.diagnostics["entropy"] == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0]


def test_a_coefficient_a_layer_is_not_one_a_task() -> None:
    taus = TaskVectors(*random_models({"a": (3,), "b": (3,)}, 2))
    coefficients = merge("adamerging", taus, steps=5).diagnostics["coefficients"]
    assert coefficients.keys() == {"a", "b"} and coefficients["a"] != coefficients["b"]
    assert merge("adamerging", taus, steps=5, granularity="task").diagnostics["coefficients"].keys() == {"all"}
