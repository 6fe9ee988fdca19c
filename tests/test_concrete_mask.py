"""The fast draw of the Concrete mask against its definition, and its gradient against automatic differentiation."""

import pytest
import torch
from torch import Generator, Tensor
from torch.testing import assert_close

from fusion.methods import _mask
from fusion.methods._mask import draw, logistic, rescale, sample, to_logits

SHAPES = {"none": (0, 3), "one": (), "few": (2, 3), "several runs": (50, 40)}


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mask, "RUN", 300)


def some_logits(dtype: torch.dtype) -> dict[str, Tensor]:
    rng = Generator().manual_seed(2)
    found = {name: torch.randn(shape, generator=rng, dtype=dtype) for name, shape in SHAPES.items()}
    return {name: x.requires_grad_() for name, x in found.items()}


def drawn(logits: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    masks = {name: torch.empty_like(x, requires_grad=True) for name, x in logits.items()}
    return masks, draw(logits, masks, 0.5, Generator().manual_seed(7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_is_the_rescaled_sample_and_its_gradient_that_of_the_formula(dtype: torch.dtype) -> None:
    logits, rng = some_logits(dtype), Generator().manual_seed(7)
    expected = {name: rescale(sample(x, 0.5, rng)) for name, x in logits.items()}
    masks, means = drawn(logits)
    assert_close(masks, expected)
    for name, x in logits.items():
        slope = torch.randn(x.shape, dtype=dtype, generator=Generator().manual_seed(1))
        (wanted,) = torch.autograd.grad(expected[name], x, slope)
        kept = slope.clone()
        assert_close(to_logits(slope, masks[name], means[name], 0.5), wanted)
        assert torch.equal(slope, kept)


def test_a_draw_does_not_depend_on_the_number_of_threads() -> None:
    logits, threads = some_logits(torch.float32), torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(drawn(logits)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0][name], found[1][name]) for name in logits)


def test_a_mask_that_is_zero_everywhere_stays_zero_with_a_finite_gradient() -> None:
    logits = {"w": torch.full((4,), -1e4, requires_grad=True)}
    masks, means = drawn(logits)
    assert masks["w"].tolist() == [0.0] * 4
    assert to_logits(torch.ones(4), masks["w"], means["w"], 0.5).tolist() == [0.0] * 4


def test_noise_is_the_log_odds_of_a_uniform_number() -> None:
    u = logistic(torch.empty(20_001), 3, 0).sigmoid().double().sort().values
    steps = torch.arange(1, len(u) + 1) / len(u)
    assert (u - steps).abs().max() < 1.63 / len(u) ** 0.5  # Kolmogorov and Smirnov, at 1 %
    assert u[0] > 0 and u[-1] < 1


def test_noise_differs_between_seeds_and_between_runs() -> None:
    draws = [logistic(torch.empty(4), seed, start).tolist() for seed, start in ((3, 0), (3, 300), (4, 0))]
    assert draws[0] != draws[1] and draws[0] != draws[2]
    assert draws[0] == logistic(torch.empty(4), 3, 0).tolist()
