"""Losses stay where they are until somebody looks, and one that is not finite is told by its step."""

import pytest
import torch
from torch import tensor

from fusion import losses
from fusion.losses import Losses, require_finite


def test_losses_come_in_their_order_after_those_that_are_known() -> None:
    found = Losses([3.0, 2.0], lr=0.1)
    for value in (1.5, 1.0):
        found.add(tensor(value, requires_grad=True) * 1)
    assert found.values() == found.values() == [3.0, 2.0, 1.5, 1.0]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_the_first_loss_that_is_not_finite_is_told_by_its_step(value: str) -> None:
    found = Losses([3.0, 2.0], lr=0.1)
    for loss in (1.0, float(value), float("nan")):
        found.add(tensor(loss))
    with pytest.raises(ValueError, match=rf"the loss is {value} at step 4; expected a smaller finetune\.lr than 0\.1"):
        found.values()


def test_somebody_looks_at_every_so_many_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "EVERY", 3)
    found = Losses([], lr=0.1)
    found.add(tensor(float("nan")))
    found.add(tensor(1.0))
    with pytest.raises(ValueError, match="at step 1;"):
        found.add(tensor(1.0))


def test_parameters_are_finite_or_the_step_is_told() -> None:
    require_finite([torch.ones(2), torch.zeros(1)], 7, 0.1)
    with pytest.raises(ValueError, match=r"a parameter is not finite after step 7; .* than 0\.1"):
        require_finite([torch.ones(2), tensor([1.0, float("inf")])], 7, 0.1)
