"""The entropy that adaptive methods minimise."""

import math
from itertools import repeat

import pytest
import torch
from torch.testing import assert_close

from fusion.objectives import TotalEntropy, entropy


def test_entropy_is_in_nats() -> None:
    # uniform over 4: ln 4; (1/4, 3/4): ¼ ln 4 + ¾ ln 4/3
    assert_close(entropy(torch.zeros(1, 4)), torch.tensor([1.3862944]))
    assert_close(entropy(torch.tensor([[0.0, math.log(3.0)]])), torch.tensor([0.5623351]))


def test_entropy_has_one_value_a_row_and_ignores_a_shift_of_the_logits() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert entropy(logits).shape == (5,)
    assert_close(entropy(logits + 100), entropy(logits), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("height", [50.0, 1e4, 1e30])
def test_entropy_and_its_gradient_are_zero_and_finite_at_one_hot(height: float) -> None:
    logits = torch.tensor([[height, 0.0, -height]], requires_grad=True)
    found = entropy(logits)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert_close(found.detach(), torch.zeros(1))
    assert_close(gradient, torch.zeros(1, 3))


def test_gradient_of_the_entropy_is_that_of_its_formula() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(entropy, [logits]) and torch.autograd.gradgradcheck(entropy, [logits])


def test_total_entropy_sums_over_tasks_the_mean_over_a_batch() -> None:
    # task 0: rows with ln 2 and 0 (one-hot) -> ½ ln 2; task 1: ln 3.  The weights scale the logits by 1.
    batches = [torch.tensor([[0.0, 0.0], [99.0, 0.0]]), torch.zeros(1, 3)]
    total = TotalEntropy(
        lambda params: {"w": params["a"] + 1}, lambda w, batch: [w["w"] * one for one in batch], repeat(batches)
    )
    assert_close(total({"a": torch.tensor(0.0)}), torch.tensor(0.5 * math.log(2) + math.log(3)))


def test_total_entropy_takes_the_next_batch_each_time() -> None:
    seen = []

    def logits(weights, batch):
        seen.append(batch)
        return [torch.zeros(1, 2)]

    total = TotalEntropy(dict, logits, iter([1, 2]))
    total({})
    total({})
    assert seen == [1, 2]
