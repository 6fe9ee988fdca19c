"""Methods that keep some coordinates of task vectors, by hand and against plain formulas on whole models."""

from math import exp
from typing import Any

import numpy as np
import pytest
import torch
from peft.utils import merge_utils
from tiny_vectors import Model, merge, model, random_models, tensors, vectors
from torch import Generator, Tensor
from torch.testing import assert_close

from fusion import methods
from fusion.device import CPU
from fusion.methods._draws import LEVELS
from fusion.methods.breadcrumbs import keep_middle
from fusion.methods.dare import drop
from fusion.methods.della import counts_by_rank, drop_in_rows
from fusion.methods.pcb import exp_sums, exp_totals, largest, positive
from fusion.vectors import Layer, NotApplicable, TaskVectors, run_length

TAUS = [[4.0, -1.0, 2.0, 0.0], [1.0, 3.0, -5.0, 2.0], [-2.5, 2.0, 1.0, 6.0]]
TRUNK = [10.0, 20.0, 30.0, 40.0]


def merged(pipeline: str, taus: TaskVectors, **values: Any) -> Tensor:
    return tensors(merge(pipeline, taus, **values))["w"]


def transformed(algorithm: str, taus: TaskVectors, seed: int = 0, **hyper: Any) -> dict[str, Tensor]:
    """(T, *shape) of every layer."""
    found = methods.load(algorithm)(taus, rng=Generator().manual_seed(seed), **hyper)
    return {layer.name: layer.taus for layer in found.layers()}


def test_weighted_average_adds_the_weighted_task_vectors() -> None:
    # 0.5 · [4, -1, 2, 0] + 0.25 · [1, 3, -5, 2] + 0.25 · [-2.5, 2, 1, 6] = [1.625, 0.75, 0, 2]
    found = merged("weighted_average", vectors(*TAUS, pretrained=TRUNK), weights=[0.5, 0.25, 0.25])
    assert found.tolist() == [11.625, 20.75, 30.0, 42.0]


def test_weighted_average_is_the_mean_without_weights() -> None:
    assert_close(merged("weighted_average", vectors(*TAUS)), merged("simple_average", vectors(*TAUS)))


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.5, 0.5, 0.5], []], ids=str)
def test_weighted_average_wants_one_weight_a_task_and_a_sum_of_one(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="expected 3, one a task, that sum to 1"):
        merge("weighted_average", vectors(*TAUS), weights=weights)


def test_weights_are_finite() -> None:
    with pytest.raises(ValueError, match=r"weights.0: got nan, Input should be a finite number"):
        merge("weighted_average", vectors(*TAUS), weights=[float("nan"), 0.5, 0.5])


def test_magnitude_prune_keeps_the_largest_coordinates_of_every_task() -> None:
    # density 0.5 keeps two of four: [4, 0, 2, 0] + [0, 3, -5, 0] + [-2.5, 0, 0, 6]
    values = {"magnitude_prune.density": 0.5, "task_arithmetic.scaling": 1.0}
    assert merged("magnitude_prune + task_arithmetic", vectors(*TAUS), **values).tolist() == [1.5, 3.0, -3.0, 6.0]


def test_magnitude_prune_counts_over_the_whole_model_or_over_every_layer() -> None:
    start = model([0.0, 0.0], "a") | model([0.0, 0.0], "b")
    taus = TaskVectors(start, [model([1.0, 2.0], "a") | model([3.0, -4.0], "b")])
    everywhere, by_layer = (transformed("magnitude_prune", taus, density=0.5, scope=s) for s in ("global", "layer"))
    assert [everywhere["a"].tolist(), everywhere["b"].tolist()] == [[[0.0, 0.0]], [[3.0, -4.0]]]
    assert [by_layer["a"].tolist(), by_layer["b"].tolist()] == [[[0.0, 2.0]], [[0.0, -4.0]]]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_magnitude_prune_agrees_with_peft_on_one_tensor(scope: str) -> None:
    pretrained, finetuned = random_models({"w": (40,)}, 3)
    taus = [one["w"] - pretrained["w"] for one in finetuned]
    expected = merge_utils.magnitude_prune(taus, torch.ones(3), 0.25)
    found = transformed("magnitude_prune", TaskVectors(pretrained, finetuned), density=0.25, scope=scope)
    assert_close(found["w"].sum(0), expected)


def ties_of_the_paper(taus: Tensor, density: float) -> Tensor:
    """Yadav et al., algorithm 1, on flattened models (T, P)."""
    keep = int(density * taus.shape[1])
    limits = taus.abs().kthvalue(taus.shape[1] - keep + 1, dim=1, keepdim=True).values
    trimmed = torch.where(taus.abs() >= limits, taus, 0)
    agree = trimmed.sign() == trimmed.sum(0).sign()
    return torch.where(agree, trimmed, 0).sum(0) / (agree & (trimmed != 0)).sum(0).clamp(min=1)


def test_ties_on_more_than_one_run_agrees_with_the_formula_on_flattened_models() -> None:
    size = run_length(3, CPU) + 5
    taus = torch.randn(3, size, generator=Generator().manual_seed(0))
    found = merged("ties", TaskVectors({"w": torch.zeros(size)}, [{"w": tau} for tau in taus]))
    assert_close(found, ties_of_the_paper(taus, 0.2))


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
def test_the_parts_of_ties_add_up_to_its_update(aggregation: str) -> None:
    taus = TaskVectors(*random_models({"w": (30,), "v": (4, 3)}, 3))
    found = merge("ties", taus, aggregation=aggregation, density=0.5)
    again = merge("ties + task_arithmetic", taus, **{
        "ties.aggregation": aggregation, "ties.density": 0.5, "task_arithmetic.scaling": 1.0,
    })  # fmt: skip
    assert_close(tensors(again), tensors(found))


def test_ties_and_adamerging_starts_from_the_agreeing_coordinates() -> None:
    # density 1: sums [2.5, 4, -2, 8]; agreeing [4, 0, 0, 0], [1, 3, -5, 2], [0, 2, 0, 6]; 0.5 · their sum
    values = {"ties.density": 1.0, "ties.aggregation": "sum", "adamerging.steps": 0, "adamerging.scaling": 0.5}
    assert merged("ties + adamerging", vectors(*TAUS), **values).tolist() == [2.5, 2.5, -2.5, 4.0]


def test_dare_keeps_the_wanted_fraction_and_divides_it_by_that() -> None:
    tau = torch.randn(40_000, generator=Generator().manual_seed(1)) + 3
    found = transformed("dare", TaskVectors({"w": torch.zeros(40_000)}, [{"w": tau}]), density=0.25)["w"][0]
    survivors = found != 0
    assert abs(survivors.float().mean() - 0.25) < 0.01  # the standard deviation is 0.002
    assert_close(found[survivors], 4 * tau[survivors], rtol=0, atol=0)
    assert abs(found.mean() / tau.mean() - 1) < 0.03


def test_dare_draws_anew_for_every_task_layer_and_seed() -> None:
    ones = torch.ones(200)
    start = {"a": torch.zeros(200), "b": torch.zeros(200)}
    taus = TaskVectors(start, [{"a": ones, "b": ones}, {"a": 2 * ones, "b": 2 * ones}])
    first, again, other = (transformed("dare", taus, seed, density=0.5) for seed in (0, 0, 1))
    masks = [first["a"][0] != 0, first["a"][1] != 0, first["b"][0] != 0, other["a"][0] != 0]
    assert all(not torch.equal(one, two) for i, one in enumerate(masks) for two in masks[:i])
    assert torch.equal(first["a"], again["a"])


def test_dare_gives_a_task_the_same_draws_wherever_it_stands() -> None:
    pretrained, finetuned = random_models({"w": (50,), "v": (7,)}, 3)
    there, back = (transformed("dare", TaskVectors(pretrained, order)) for order in (finetuned, finetuned[::-1]))
    assert all(torch.equal(there[name], back[name].flip(0)) for name in there)


@pytest.mark.parametrize("size", [run_length(2, CPU) + 3, 2 * run_length(2, CPU), 5])
def test_dare_is_the_same_read_by_layers_and_by_runs(size: int) -> None:
    draws = torch.randn(2, size, generator=Generator().manual_seed(2))
    taus = TaskVectors({"w": torch.zeros(size)}, [{"w": draw} for draw in draws])
    by_layer = methods.load("dare")(taus, rng=Generator().manual_seed(0), density=0.5)
    (whole,) = by_layer.layers()
    runs = [run().taus for run in by_layer.runs("w", taus.pretrained["w"])]
    assert torch.equal(torch.cat(runs, dim=1), whole.taus)


def test_dare_at_density_one_changes_nothing() -> None:
    assert transformed("dare", vectors(*TAUS), density=1.0)["w"].tolist() == TAUS


@pytest.mark.parametrize("algorithm", ["ties", "magnitude_prune", "doge"])
def test_a_density_of_one_needs_no_look_at_the_models(algorithm: str) -> None:
    looked: list[str] = []

    def look(layer: Layer) -> Tensor:
        looked.append(layer.name)
        return layer.taus

    methods.load(algorithm)(vectors(*TAUS).transform(look), rng=Generator(), density=1.0)
    assert looked == []
    methods.load(algorithm)(vectors(*TAUS).transform(look), rng=Generator(), density=0.9)
    assert looked


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_magnitude_prune_at_density_one_changes_nothing(scope: str) -> None:
    assert transformed("magnitude_prune", vectors(*TAUS), density=1.0, scope=scope)["w"].tolist() == TAUS


def rows_of(kind: str) -> Tensor:
    """Three rows of odd length."""
    draws = torch.randn(3, 777, generator=Generator().manual_seed(4))
    return {
        "random": draws,
        "tied": draws.round(),
        "zero": 0 * draws,  # of both signs
        "huge and tiny": draws.sign() * 10.0 ** (20 * draws).clamp(-44, 38),
        "close to each other": 1 + 1e-6 * draws,
        "one a row": draws.reshape(-1, 1),
        "one row": draws.reshape(1, -1),
    }[kind]


KINDS = ["random", "tied", "zero", "huge and tiny", "close to each other", "one a row", "one row"]


def test_breadcrumbs_drops_the_outliers_and_the_smallest() -> None:
    # Of ten, the largest two (10, -9) are outliers; five are kept; 3, 2, 1 are too small
    tau = [1.0, 10.0, -3.0, 8.0, 5.0, -9.0, 2.0, -4.0, 6.0, 7.0]
    found = transformed("breadcrumbs", vectors(tau), density=0.5, outliers=0.2)["w"][0]
    assert found.tolist() == [0.0, 0.0, 0.0, 8.0, 5.0, 0.0, 0.0, -4.0, 6.0, 7.0]


def test_breadcrumbs_counts_in_the_layer_or_in_every_row() -> None:
    # Of eight, two outliers (40, 30) and the next four; of four in each row, one outlier and the next two
    taus = vectors([[1.0, -2.0, 3.0, 4.0], [40.0, 30.0, 20.0, -10.0]])
    layer, row = (
        transformed("breadcrumbs", taus, density=0.5, outliers=0.25, scope=s)["w"][0] for s in ("layer", "row")
    )
    assert layer.tolist() == [[0.0, 0.0, 3.0, 4.0], [0.0, 0.0, 20.0, -10.0]]
    assert row.tolist() == [[0.0, -2.0, 3.0, 0.0], [0.0, 30.0, 20.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("long", [50, 10_000])
def test_breadcrumbs_keeps_by_its_compiled_loop_what_its_plain_formulation_does(
    kind: str, dtype: torch.dtype, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.thresholds.LONG", long)
    monkeypatch.setattr("fusion.thresholds.STRIDE", 7)
    rows = rows_of(kind).to(dtype)
    for density, outliers in ((0.143, 0.007), (1.0, 0.0), (0.5, 0.5), (0.9, 0.4), (0.001, 0.01)):
        compiled, plain = rows.clone(), rows.clone()
        monkeypatch.setattr("fusion.device.IS_PLAIN", False)
        keep_middle(compiled, density, outliers)
        monkeypatch.setattr("fusion.device.IS_PLAIN", True)
        keep_middle(plain, density, outliers)
        assert torch.equal(compiled, plain)


EMPTY = {"s": torch.zeros(()), "e": torch.zeros(0, 3), "f": torch.zeros(3, 0), "c": torch.zeros(2, 20)}


@pytest.mark.parametrize("scope", ["layer", "row"])
@pytest.mark.parametrize("algorithm", ["breadcrumbs", "della"])
def test_rows_may_be_empty_or_a_single_number(algorithm: str, scope: str) -> None:
    taus = TaskVectors(EMPTY, [{name: tensor + 1 for name, tensor in EMPTY.items()}])
    found = transformed(algorithm, taus, scope=scope)
    assert {name: tau.shape[1:] for name, tau in found.items()} == {name: t.shape for name, t in EMPTY.items()}


@pytest.mark.parametrize("scope", ["layer", "row"])
def test_breadcrumbs_keeps_all_that_tie_with_the_last_one_kept(scope: str) -> None:
    found = transformed("breadcrumbs", vectors([[1.0] * 20] * 2), density=0.5, outliers=0.1, scope=scope)
    assert found["w"].unique().tolist() == [1.0]


def test_della_keeps_large_coordinates_of_a_row_with_a_higher_probability() -> None:
    # 0.5 ± 0.2 / 2 by the rank among three, or among six; a single coordinate has no rank
    tau = torch.tensor([[1.0, -3.0, 2.0], [-60.0, 50.0, 40.0]])
    expected = {
        "row": torch.tensor([[0.4, 0.6, 0.5], [0.6, 0.5, 0.4]]),
        "layer": torch.tensor([[0.4, 0.48, 0.44], [0.6, 0.56, 0.52]]),
    }
    taus = TaskVectors({"w": torch.zeros(2, 3), "s": torch.zeros(2, 1)}, [{"w": tau, "s": torch.ones(2, 1)}])
    for scope, shares in expected.items():
        found = [transformed("della", taus, seed, density=0.5, epsilon=0.2, scope=scope) for seed in range(40)]
        inverse = torch.stack([one["w"][0] / tau for one in found]).amax(0)  # 1 / (1 − p), by whichever seed keeps it
        assert_close(inverse, 1 / shares, rtol=1e-4, atol=0)
    assert_close(counts_by_rank(tau, 1, 0.5, 0.2), torch.tensor([LEVELS / 2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_della_drops_by_its_compiled_loop_what_its_plain_formulation_does(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(kind).to(dtype)
    draws = torch.randint(-LEVELS // 2, LEVELS // 2, rows.shape, generator=Generator().manual_seed(5)).short()
    counts = counts_by_rank(rows, rows.shape[1], 0.5, 0.9)
    compiled, plain = torch.empty_like(rows), torch.empty_like(rows)
    drop_in_rows(rows, draws, counts, compiled)
    monkeypatch.setattr("fusion.device.IS_PLAIN", True)
    drop_in_rows(rows, draws, counts, plain)
    assert torch.equal(compiled, plain)


def test_della_drops_by_these_probabilities_and_divides_by_them() -> None:
    tau = torch.tensor([1.0, -3.0, 2.0]).expand(10_000, 3)
    found = transformed("della", TaskVectors({"w": torch.zeros(10_000, 3)}, [{"w": tau}]), density=0.5, epsilon=0.2)
    survivors = found["w"][0] != 0
    assert_close(survivors.float().mean(0), torch.tensor([0.4, 0.6, 0.5]), rtol=0, atol=0.02)  # deviation 0.005
    expected = (tau / torch.tensor([0.4, 0.6, 0.5]))[survivors]
    assert_close(found["w"][0][survivors], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("density", "epsilon"), [(0.05, 0.2), (0.95, 0.2), (0.5, 1.0)])
def test_della_refuses_probabilities_outside_their_range(density: float, epsilon: float) -> None:
    with pytest.raises(ValueError, match=r"expected density ± epsilon / 2 within \(0, 1\]"):
        methods.load("della")(vectors(*TAUS), rng=Generator(), density=density, epsilon=epsilon)


def test_pcb_weighs_tasks_by_their_scores() -> None:
    # u_11 = [4, 0, 0], u_22 = [1, 1, 0], u_12 = [2, 0, 0]; normed [1, 0, 0], [1, 1, 0], [1, 0, 0]. Kept: one each,
    # coordinate 0. Coordinate 1 of task 2 has a lower score, its product with task 1 being 0
    first = exp(2) / (exp(2) + 2) * 2 * exp(1) / (exp(1) + 2)
    second = exp(2) / (2 * exp(2) + 1) * (exp(1) / (exp(1) + 2) + exp(1) / (2 * exp(1) + 1))
    expected = (2 * first + 1 * second) / (first + second)
    found = merged("pcb", vectors([2.0, 0.0, 0.0], [1.0, 1.0, 0.0]), density=1 / 3, scaling=2.0)
    assert_close(found, torch.tensor([2 * expected, 0.0, 0.0]))


def norm(values: Tensor) -> Tensor:
    """To 0 … 1 over the last dimension."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    return (values - low) / (high - low)


def pcb_of_the_paper(taus: Tensor, density: float) -> Tensor:
    """Du et al., section 3.2, on flattened models (T, P)."""
    count = len(taus)
    inner = (count * norm(taus * taus)).softmax(-1)
    scores = inner * sum(norm(taus * other).softmax(-1) for other in taus)
    least = scores.topk(int(density * taus.shape[1])).values[:, -1:]
    weights = scores.where(scores >= least, 0)
    return (weights * taus).sum(0) / weights.sum(0).clamp(min=1e-30)


def pcb_of_the_code(taus: Tensor, density: float) -> Tensor:
    """Their code on flattened models, without its clipping of outliers, and with a coordinate at zero."""
    scores = torch.exp(len(taus) * norm(taus.abs()) ** 2) * torch.tanh(taus * taus.sum(0))
    least = scores.topk(int(density * taus.shape[1])).values[:, -1:]
    weights = norm(scores.maximum(least))
    return (weights * taus).sum(0) / weights.sum(0).clamp(min=1e-12)


@pytest.mark.parametrize("balancing", ["softmax", "tanh"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_pcb_agrees_with_its_formula_on_flattened_models(balancing: str, count: int) -> None:
    draws = torch.randn(count, 60, generator=Generator().manual_seed(3)) * 0.1
    draws[:, 7] = 0
    split = [{"a": draw[:20].reshape(4, 5), "b": draw[20:]} for draw in draws]
    start: Model = {"a": torch.zeros(4, 5), "b": torch.zeros(40)}
    found = tensors(merge("pcb", TaskVectors(start, split), density=0.2, balancing=balancing))
    expected = {"softmax": pcb_of_the_paper, "tanh": pcb_of_the_code}[balancing](draws.double(), 0.2)
    assert_close(torch.cat([found["a"].reshape(-1), found["b"]]), expected.float())


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (2, 257), (5, 9001)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-18, 1e-21])  # products near the least that float32 holds, and below
def test_pcb_scores_by_its_compiled_loop_as_its_plain_formulation_does(
    shape: tuple[int, int], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = scale * torch.randn(shape, generator=Generator().manual_seed(6))
    products = units[:, None] * units
    lows = products.amin(2)
    spans = positive(products.amax(2) - lows)
    means = torch.rand(lows.shape, dtype=torch.float64, generator=Generator().manual_seed(7)) + 1
    means = means + means.T
    compiled = exp_sums(units, lows, spans), exp_totals(units, lows, spans, means)
    monkeypatch.setattr("fusion.device.IS_PLAIN", True)
    plain = exp_sums(units, lows, spans), exp_totals(units, lows, spans, means)
    assert_close(compiled, plain, rtol=1e-6, atol=0)
    assert_close(plain[0], ((products - lows[:, :, None]) / spans[:, :, None]).double().exp().sum(2), rtol=1e-6, atol=0)


def test_pcb_finds_the_largest_magnitudes_in_one_reading() -> None:
    read: list[int] = []

    def look(run: Layer) -> Tensor:
        read.append(run.pretrained.numel())
        return run.taus

    taus = TaskVectors(*random_models({"a": (40, 50), "b": (700,)}, 3)).transform(look, coordinatewise=True)
    expected = torch.stack([layer.taus.abs().flatten(1).amax(1) for layer in taus.layers()]).amax(0)
    read.clear()
    assert torch.equal(largest(taus), expected)
    assert read == [2000, 700]


def test_consensus_keeps_what_enough_tasks_want() -> None:
    # Σ τ = [3, 4, -2, 8]; the others' sums [1, 5, 4, 8], [2, 1, 3, 6], [5, 2, 3, 2]. λ 1: |τ_t| ≥ them for
    # [1 0 0 0], [0 1 1 0], [0 1 0 1]; λ 0.5: [1 0 1 0], [1 1 1 0], [0 1 0 1]
    taus = vectors(TAUS[0], TAUS[1], [-2.0, 2.0, 1.0, 6.0], pretrained=TRUNK)
    found = {
        (k, str(limit)): merged("consensus", taus, agreement=k, threshold=limit, scaling=0.5).tolist()
        for k, limit in [(2, 1.0), (2, 0.5), (1, 1.0), (0, 9.0), (3, 9.0), (2, [1.0, 0.5, 1.0])]
    }
    assert found == {
        (2, "1.0"): [10.0, 22.0, 30.0, 40.0],
        (2, "0.5"): [11.5, 22.0, 29.0, 40.0],
        (1, "1.0"): [11.5, 22.0, 29.0, 44.0],
        (0, "9.0"): [11.5, 22.0, 29.0, 44.0],  # task arithmetic
        (3, "9.0"): TRUNK,
        (2, "[1.0, 0.5, 1.0]"): [11.5, 22.0, 30.0, 40.0],
    }


def test_consensus_of_more_tasks_than_there_are_says_so() -> None:
    with pytest.raises(NotApplicable, match="agreement of 2 tasks, and there are 1"):
        merged("consensus", vectors(TAUS[0]))


def test_random_draws_are_spread_over_the_whole_tensor() -> None:
    # A stream that repeats every few words would drop the same columns everywhere
    found = transformed("dare", TaskVectors({"w": torch.zeros(256, 256)}, [{"w": torch.ones(256, 256)}]), density=0.5)
    kept = (found["w"][0] != 0).double().numpy()
    assert abs(kept.mean(0) - 0.5).max() < 0.16
    assert abs(kept.mean(1) - 0.5).max() < 0.16  # five standard deviations
    assert np.linalg.matrix_rank(kept) > 250


def test_dare_drops_of_task_vectors_that_are_no_run_of_memory() -> None:
    """As those are that a basis turns (KnOTS)."""
    taus = torch.randn(2, 30, 40, generator=Generator().manual_seed(6))
    layer = Layer("w", torch.zeros(30, 40), taus)
    turned = layer._replace(taus=taus.transpose(1, 2).contiguous().transpose(1, 2))
    assert torch.equal(drop(1, 0.5, turned), drop(1, 0.5, layer))
