"""Methods that use labels or their statistics, worked out by hand and against the papers' formulas written out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vectors import Model, model, random_models, vectors
from torch import Generator, Tensor
from torch.testing import assert_close

from fusion import methods
from fusion.methods.lorahub import minimum
from fusion.methods.regmean_plus_plus import blocks, walk
from fusion.methods.tangent_projection import projection_weights
from fusion.needs import Features
from fusion.vectors import TaskVectors

TAUS = [[4.0, -1.0, 2.0, 0.0], [1.0, 3.0, -5.0, 2.0], [-2.0, 2.0, 1.0, 6.0]]
TRUNK = [10.0, 20.0, 30.0, 40.0]


def merged(algorithm: str, taus: TaskVectors, needed: Any = None, **hyper: Any) -> Any:
    needs = [] if needed is None else [needed]
    return methods.load(algorithm)(taus, *needs, rng=Generator().manual_seed(0), **hyper)


def merged_w(algorithm: str, taus: TaskVectors, needed: Any = None, **hyper: Any) -> Tensor:
    return merged(algorithm, taus, needed, **hyper).tensors()["w"]


def statistics(*values: Any) -> list[Model]:
    return [model(one) for one in values]


def test_fisher_weighs_each_coordinate_by_its_information_and_averages_where_there_is_none() -> None:
    # Σ F τ = [4 + 1 − 4, 3 + 6, 4 − 5 + 1] = [1, 9, 0] over Σ F = [4, 4, 4]; the last is the mean 8 / 3
    fishers = statistics([1.0, 0.0, 2.0, 0.0], [1.0, 1.0, 1.0, 0.0], [2.0, 3.0, 1.0, 0.0])
    found = merged_w("fisher", vectors(*TAUS, pretrained=TRUNK), fishers)
    assert_close(found, torch.tensor([10.25, 22.25, 30.0, 40 + 8 / 3]))


def test_fisher_normalized_lets_no_task_outweigh_the_others_by_the_size_of_its_gradients() -> None:
    # norms 5 and 50: F / ‖F‖ are the same; without, (3 · 1 + 30 · 3) / 33
    taus, fishers = vectors([1.0, 1.0], [3.0, 3.0]), statistics([3.0, 4.0], [30.0, 40.0])
    assert_close(merged_w("fisher", taus, fishers, normalize=True), torch.tensor([2.0, 2.0]))
    assert_close(merged_w("fisher", taus, fishers), torch.tensor([93 / 33, 93 / 33]))
    # an all-zero Fisher information has no norm to divide by, and no weight
    assert merged_w("fisher", taus, statistics([0.0, 0.0], [3.0, 0.0]), normalize=True).tolist() == [3.0, 2.0]


def test_fisher_counts_information_below_the_floor_alike() -> None:
    # max(F, 1): [1, 1] and [1, 3]
    found = merged_w("fisher", vectors([1.0, 0.0], [3.0, 4.0]), statistics([0.5, 0.1], [0.1, 3.0]), floor=1.0)
    assert found.tolist() == [2.0, 3.0]


def test_fisher_information_of_any_magnitude_gives_the_same_shares() -> None:
    taus = vectors([1.0, 1.0], [3.0, 3.0])
    for scale in (1e-38, 1e-20, 1e38):
        assert_close(merged_w("fisher", taus, statistics([scale, 3 * scale], [scale, scale])), torch.tensor([2.0, 1.5]))


def test_fisher_information_that_is_missing_or_of_another_shape_is_an_error() -> None:
    taus = vectors([1.0, 1.0], [3.0, 3.0])
    with pytest.raises(ValueError, match="'w' in model 1: got nothing"):
        merged("fisher", taus, [model([1.0, 1.0]), {}])
    with pytest.raises(ValueError, match=r"got \(3,\), expected \(2,\)"):
        merged("fisher", taus, statistics([1.0, 1.0, 1.0], [1.0, 1.0]))


def test_regmean_weighs_inputs_by_how_much_each_task_has_of_them() -> None:
    # diagonal G: column by column Σ τ g / Σ g = 4 · 1 / 2 and 4 · 3 / 4
    grams = statistics([[1.0, 0.0], [0.0, 3.0]], [[1.0, 0.0], [0.0, 1.0]])
    assert_close(merged_w("regmean", vectors([[4.0, 4.0]], [[0.0, 0.0]]), grams), torch.tensor([[2.0, 3.0]]))


def test_regmean_scales_the_off_diagonal_entries() -> None:
    # G1 = [[2, a], [a, 2]], G2 = I, τ1 = [1, 0]: [2, a] [[3, −a], [−a, 3]] / (9 − a²)
    taus, grams = vectors([[1.0, 0.0]], [[0.0, 0.0]]), statistics([[2.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]])
    assert_close(merged_w("regmean", taus, grams, off_diagonal=1.0), torch.tensor([[5 / 8, 1 / 8]]))
    assert_close(merged_w("regmean", taus, grams, off_diagonal=0.5), torch.tensor([[5.75 / 8.75, 0.5 / 8.75]]))
    assert_close(merged_w("regmean", taus, grams, off_diagonal=0.0), torch.tensor([[2 / 3, 0.0]]))


def test_regmean_averages_what_no_task_has_inputs_for_and_what_is_no_linear_weight(caplog) -> None:
    # the second input never occurs: its column is the mean; [2 · 1 + 4 · 3] / 4 in the first
    taus = vectors([[2.0, 2.0]], [[4.0, 4.0]])
    grams = statistics([[1.0, 0.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 0.0]])
    assert_close(merged_w("regmean", taus, grams), torch.tensor([[3.5, 3.0]]))
    assert "pseudo-inverse" in caplog.text
    assert_close(merged_w("regmean", taus, [{}, {}]), torch.tensor([[3.0, 3.0]]))


def test_regmean_wants_a_gram_matrix_of_the_layer_from_every_task() -> None:
    taus = vectors([[2.0, 2.0]], [[4.0, 4.0]])
    for grams in ([model([[1.0, 0.0], [0.0, 1.0]]), {}], statistics([[1.0]], [[1.0]])):
        with pytest.raises(ValueError, match=r"expected 2 of \(2, 2\)"):
            merged_w("regmean", taus, grams)


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 6), tasks=st.integers(1, 4), seed=st.integers(0, 99))
def test_regmean_agrees_with_the_paper_on_weights(rows: int, columns: int, tasks: int, seed: int) -> None:
    pretrained, finetuned = random_models({"w": (rows, columns)}, tasks, seed)
    inputs = torch.randn(tasks, 3 * columns, columns, generator=Generator().manual_seed(seed), dtype=torch.float64)
    grams = [x.T @ x for x in inputs]
    damped = [0.9 * g + 0.1 * torch.diag(g.diagonal()) for g in grams]
    weights = [one["w"].double() for one in finetuned]
    expected = sum(w @ g for w, g in zip(weights, damped, strict=True)) @ torch.linalg.inv(sum(damped))
    found = merged_w("regmean", TaskVectors(pretrained, finetuned), [{"w": g} for g in grams])
    assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_regmean_with_whole_gram_matrices_answers_as_the_models_do_in_least_squares() -> None:
    pretrained, finetuned = random_models({"w": (3, 4)}, 3)
    inputs = torch.randn(3, 10, 4, generator=Generator().manual_seed(1))
    answers = torch.cat([x @ one["w"].T for x, one in zip(inputs, finetuned, strict=True)])
    expected = torch.linalg.lstsq(inputs.reshape(-1, 4), answers).solution.T
    grams = [{"w": x.T @ x / len(x)} for x in inputs]
    found = merged_w("regmean", TaskVectors(pretrained, finetuned), grams, off_diagonal=1.0)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_regmean_survives_inputs_that_do_not_span_all_directions() -> None:
    # three inputs of eight features: outside of them the weights are the mean, within the least squares solution
    pretrained, finetuned = random_models({"w": (2, 8)}, 2)
    inputs = [torch.randn(3, 8, generator=Generator().manual_seed(5))] * 2
    found = merged_w("regmean", TaskVectors(pretrained, finetuned), [{"w": x.T @ x} for x in inputs], off_diagonal=1.0)
    assert_close(found, torch.stack([one["w"] for one in finetuned]).mean(0), rtol=1e-4, atol=1e-5)


SHAPES = {"blocks.0.a.weight": (4, 3), "blocks.0.b.weight": (3, 4), "blocks.0.b.bias": (3,), "head.weight": (2, 3)}
INPUTS = torch.randn(2, 20, 3, generator=Generator().manual_seed(2))


def run(params: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The inputs of the layers of a block of two and of a head, by the names of their weights."""
    first = (x @ params["blocks.0.a.weight"].T).tanh()
    second = (first @ params["blocks.0.b.weight"].T + params["blocks.0.b.bias"]).tanh()
    return {"blocks.0.a.weight": x, "blocks.0.b.weight": first, "head.weight": second}


def features(task: int, params: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    return {name: x.T @ x for name, x in run(params, INPUTS[task]).items() if name in names}


def plus_plus(taus: TaskVectors, features: Features, names: list[str], off_diagonal: float) -> Model:
    """RegMean++ with Gram matrices of its own."""
    grams = dict(walk(taus, features, names, off_diagonal))
    return merged("regmean_plus_plus", taus, grams, off_diagonal=off_diagonal).tensors()


def test_regmean_plus_plus_feeds_a_block_of_each_model_with_what_the_merged_blocks_before_it_give() -> None:
    pretrained, finetuned = random_models(SHAPES, 2)
    taus = TaskVectors(pretrained, finetuned)
    found = plus_plus(taus, features, list(run(pretrained, INPUTS[0])), off_diagonal=0.9)
    within = [features(t, one, list(SHAPES)) for t, one in enumerate(finetuned)]
    block = merged("regmean", taus, within).tensors()  # the first block's inputs are the models' own
    for name in ("blocks.0.a.weight", "blocks.0.b.weight", "blocks.0.b.bias"):
        assert_close(found[name], block[name])
    after = [features(t, block, list(SHAPES)) for t in range(2)]
    assert_close(found["head.weight"], merged("regmean", taus, after).tensors()["head.weight"])
    assert (found["head.weight"] - block["head.weight"]).abs().max() > 1e-3


def test_regmean_plus_plus_of_one_layer_is_regmean() -> None:
    grams = statistics([[2.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]])
    taus = vectors([[1.0, 0.0]], [[0.0, 0.0]])
    found = plus_plus(taus, lambda task, params, names: grams[task], ["w"], off_diagonal=0.5)
    assert_close(found["w"], torch.tensor([[5.75 / 8.75, 0.5 / 8.75]]))


def test_blocks_are_numbered_layers_in_the_order_in_which_they_run() -> None:
    names = ["proj.weight", "enc.layer.2.q.weight", "enc.layer.2.fc.weight", "enc.layer.10.q.weight", "0.weight"]
    assert blocks(names) == [names[:1], names[1:3], names[3:4], names[4:]]
    assert blocks(["fc1.weight", "fc2.weight"]) == [["fc1.weight"], ["fc2.weight"]]


def squared_distance(target: Sequence[float]) -> Any:
    def loss(params: Mapping[str, Tensor], tasks: Sequence[int] | None = None) -> Tensor:
        return (params["w"] - torch.tensor(target)).square().sum()

    return loss


def test_lorahub_finds_the_coefficients_of_the_least_penalized_loss() -> None:
    # min (w1 − 0.5)² + (w2 + 1)² + 0.4 (|w1| + |w2|) / 2: w = 0.5 − 0.1, −1 + 0.1
    taus = vectors([1.0, 0.0], [0.0, 1.0])
    found = merged("lorahub", taus, squared_distance([0.5, -1.0]), steps=60, penalty=0.4)
    assert_close(torch.tensor(found.diagnostics["coefficients"]["all"]), torch.tensor([0.4, -0.9]), rtol=0, atol=0.02)
    assert_close(found.tensors()["w"], torch.tensor([0.4, -0.9]), rtol=0, atol=0.02)


def test_lorahub_stays_within_its_limits_and_starts_at_the_pretrained_model() -> None:
    taus = vectors([1.0, 0.0], [0.0, 1.0], pretrained=[2.0, 0.0])
    found = merged("lorahub", taus, squared_distance([9.0, -9.0]))
    assert found.diagnostics["losses"][0] == 7.0**2 + 9.0**2
    assert len(found.diagnostics["losses"]) == 40
    # 40 evaluations come near the corner of what is allowed; how near depends on the optimizer's release
    assert found.tensors()["w"].tolist() == pytest.approx([3.5, -1.5], abs=1e-2)
    assert max(abs(w) for w in found.diagnostics["coefficients"]["all"]) <= 1.5
    assert merged("lorahub", taus, squared_distance([9.0, -9.0]), steps=0).tensors()["w"].tolist() == [2.0, 0.0]


def test_lorahub_survives_losses_that_are_no_numbers() -> None:
    found = merged("lorahub", vectors([1.0], [2.0]), lambda params: params["w"].sum() * math.nan, steps=6)
    assert found.diagnostics["losses"] == [1e10] * 6


def test_a_gradient_free_minimum_depends_on_its_seed_alone() -> None:
    def valley(w: Tensor) -> float:
        torch.rand(1)  # the global random state is not the search's
        return (w - 0.3).square().sum().item()

    one, same = (minimum(valley, 12, 40, seed=3) for _ in range(2))
    assert one.tolist() == same.tolist()


def test_greedy_task_arithmetic_adds_a_task_and_rescales_the_sum_at_once() -> None:
    # τ = 2, 2, 4. Two tasks: λ (2 + 2) is nearest to 3.1 at 3/4. Three: λ (3 + 4) is nearest to 1.5 at 1/4.
    # Coefficients 3/4 · 1/4 twice, and 1/4; the sum is 1.75
    wanted = {(0, 1): 3.1, (0, 1, 2): 1.5}
    seen = []

    def loss(params: Mapping[str, Tensor], tasks: Sequence[int] | None = None) -> Tensor:
        seen.append(tuple(tasks or ()))
        return (params["w"] - wanted[seen[-1]]).square().sum()

    found = merged("greedy_task_arithmetic", vectors([2.0], [2.0], [4.0]), loss)
    assert found.tensors()["w"].tolist() == [1.75]
    assert found.diagnostics == {"coefficients": {"all": [0.1875, 0.1875, 0.25]}, "scalings": [0.75, 0.25]}
    assert seen == [(0, 1)] * 5 + [(0, 1, 2)] * 5


def test_greedy_task_arithmetic_takes_the_least_of_equally_good_scalings_and_none_that_is_no_number() -> None:
    def loss(params: Mapping[str, Tensor], tasks: Sequence[int] | None = None) -> Tensor:
        return params["w"].sum() * (math.nan if params["w"] < 2 else 0.0)  # θ = 0, 1, 2, 3, 4

    assert merged("greedy_task_arithmetic", vectors([2.0], [2.0]), loss).diagnostics["scalings"] == [0.5]


def test_tangent_projection_counts_a_task_less_that_its_nearest_neighbour_does_not_explain() -> None:
    # nearest: 1 and 2 to each other, and collinear: a = 0. The third, orthogonal, is nearest to the first: a = 9.
    # The mean is 3: w ∝ 1, 1, exp(−3)
    found = merged("tangent_projection", vectors([1.0, 0.0], [2.0, 0.0], [0.0, 3.0]))
    total = 2 + math.exp(-3)
    assert_close(found.tensors()["w"], torch.tensor([3 / total, 3 * math.exp(-3) / total]))
    assert sum(found.diagnostics["coefficients"]["all"]) == pytest.approx(1)


def test_tangent_projection_averages_tasks_that_explain_each_other_alike() -> None:
    assert_close(merged_w("tangent_projection", vectors([1.0, 1.0], [3.0, 3.0])), torch.tensor([2.0, 2.0]))
    assert merged_w("tangent_projection", vectors([1.0, 2.0])).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("neighbors", [1, 2, 5])
def test_tangent_projection_agrees_with_projections_of_the_vectors_themselves(neighbors: int) -> None:
    vectors = torch.randn(4, 9, generator=Generator().manual_seed(neighbors), dtype=torch.float64)
    apart = []
    for t in range(4):
        others = sorted((i for i in range(4) if i != t), key=lambda i: (vectors[i] - vectors[t]).norm().item())
        span = vectors[others[:neighbors]].T
        apart.append((vectors[t] - span @ torch.linalg.lstsq(span, vectors[t]).solution).norm() ** 2)
    weights = torch.exp(-torch.stack(apart) / torch.stack(apart).mean())
    assert_close(projection_weights(vectors @ vectors.T, neighbors), weights / weights.sum())
