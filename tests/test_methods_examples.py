"""Every algorithm on three tasks × four coordinates worked out by hand, and against other implementations."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils
from tiny_vectors import merge, model, random_models, vectors
from torch import Tensor
from torch.testing import assert_close

from fusion.methods.ties import agreeing, elect, layer_thresholds, trim
from fusion.vectors import TaskVectors

TAUS = [[4.0, -1.0, 2.0, 0.0], [1.0, 3.0, -5.0, 2.0], [-2.0, 2.0, 1.0, 6.0]]
TRUNK = [10.0, 20.0, 30.0, 40.0]


def merged(algorithm: str, taus: TaskVectors, **hyper: Any) -> Any:
    return merge(algorithm, taus, **hyper).tensors()["w"]


def test_simple_average_is_the_mean_of_the_models() -> None:
    # Σ τ = [3, 4, -2, 8]; a third of it on top of θ0
    assert_close(
        merged("simple_average", vectors(*TAUS, pretrained=TRUNK)), torch.tensor([11, 64 / 3, 88 / 3, 128 / 3])
    )


def test_task_arithmetic_adds_the_scaled_sum() -> None:
    # 0.5 · [3, 4, -2, 8] = [1.5, 2, -1, 4]
    found = merged("task_arithmetic", vectors(*TAUS, pretrained=TRUNK), scaling=0.5)
    assert found.tolist() == [11.5, 22.0, 29.0, 44.0]


def test_ties_elects_the_sign_of_the_trimmed_sum_and_averages_those_that_agree() -> None:
    # density 0.75 keeps three of four: [4, -1, 2, 0], [0, 3, -5, 2], [-2.5, 2, 0, 6]
    # sums [1.5, 4, -3, 8], signs + + - +; agreeing {4}, {3, 2}, {-5}, {2, 6}
    taus = vectors(TAUS[0], TAUS[1], [-2.5, 2.0, 1.0, 6.0], pretrained=TRUNK)
    assert merged("ties", taus, density=0.75).tolist() == [14.0, 22.5, 25.0, 44.0]
    assert merged("ties", taus, density=0.75, aggregation="sum").tolist() == [14.0, 25.0, 25.0, 48.0]
    assert merged("ties", taus, density=0.75, aggregation="sum", scaling=0.5).tolist() == [12.0, 22.5, 27.5, 44.0]


def test_ties_at_density_one_keeps_every_coordinate() -> None:
    # sums [3, 4, -2, 8], signs + + - +; agreeing {4, 1}, {3, 2}, {-5}, {2, 6} (0 has no sign)
    taus = vectors(*TAUS)
    assert merged("ties", taus, density=1.0).tolist() == [2.5, 2.5, -5.0, 4.0]
    assert merged("ties", taus, density=1.0, aggregation="sum").tolist() == [5.0, 5.0, -5.0, 8.0]
    assert merged("ties", taus, density=1.0, aggregation="sum", scaling=0.5).tolist() == [2.5, 2.5, -2.5, 4.0]


def test_ties_trims_over_the_whole_model_and_by_layer_only_on_request() -> None:
    # P = 4, density 0.5 keeps 2: globally both of layer b; by layer one of each
    start = model([0.0, 0.0], "a") | model([0.0, 0.0], "b")
    taus = TaskVectors(start, [model([1.0, 2.0], "a") | model([3.0, -4.0], "b")])
    everywhere = merge("ties", taus, density=0.5).tensors()
    by_layer = merge("ties", taus, density=0.5, scope="layer").tensors()
    assert [everywhere["a"].tolist(), everywhere["b"].tolist()] == [[0.0, 0.0], [3.0, -4.0]]
    assert [by_layer["a"].tolist(), by_layer["b"].tolist()] == [[0.0, 2.0], [0.0, -4.0]]


def test_ties_leaves_a_coordinate_without_an_elected_sign_alone() -> None:
    # 2 - 2 = 0: no majority; -1 - 1 agrees
    assert merged("ties", vectors([2.0, -1.0], [-2.0, -1.0], pretrained=[7.0, 7.0]), density=1.0).tolist() == [7.0, 6.0]


@pytest.mark.parametrize("order", itertools.permutations([0.1, 0.2, -0.3]), ids=str)
def test_ties_elects_the_same_sign_in_every_order_of_tasks(order) -> None:
    # As float32 numbers the three sum to -7.5e-9, which float32 addition makes 0 in two of the orders
    assert_close(merged("ties", vectors(*([value] for value in order)), density=1.0), torch.tensor([-0.3]))


def test_ties_keeps_all_coordinates_that_tie_at_the_threshold() -> None:
    assert merged("ties", vectors([2.0, 2.0, 1.0, 0.0]), density=0.25).tolist() == [2.0, 2.0, 0.0, 0.0]


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(size=st.integers(1, 60), density=st.floats(0.01, 1.0), seed=st.integers(0, 999), wide=st.booleans())
def test_trim_keeps_exactly_density_of_all_coordinates(size: int, density: float, seed: int, wide: bool) -> None:
    dtype = torch.float64 if wide else torch.float32
    draws = torch.randn(2, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    taus = TaskVectors({"w": torch.zeros(size, dtype=dtype)}, [{"w": draw} for draw in draws])
    expected = [int(density * size + 1e-6)] * 2
    for limits in (taus.magnitude_thresholds(density), layer_thresholds(draws, density)):
        assert (trim(draws, limits) != 0).sum(1).tolist() == expected


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(size=st.integers(1, 50), density=st.sampled_from([0.125, 0.25, 0.5, 0.75]), seed=st.integers(0, 999))
def test_ties_agrees_with_peft_on_one_flat_tensor(size: int, density: float, seed: int) -> None:
    pretrained, finetuned = random_models({"w": (size,)}, 3, seed)
    taus = [one["w"] - pretrained["w"] for one in finetuned]
    expected = merge_utils.ties(taus, torch.full((3,), 0.7), density)
    found = merged("ties", TaskVectors(pretrained, finetuned), density=density, scaling=0.7)
    assert_close(found, pretrained["w"] + expected)
    summed = trim(torch.stack(taus), layer_thresholds(torch.stack(taus), density)).sum(0)
    assert_close(summed, merge_utils.magnitude_prune(taus, torch.ones(3), density))


def test_elect_counts_only_the_tasks_that_agree() -> None:
    taus = torch.tensor([[3.0, 0.0], [1.0, 0.0], [-1.0, -2.0]])
    assert elect(taus, torch.zeros(3), "mean").tolist() == [2.0, -2.0]
    assert elect(taus, torch.tensor([0.5, 2.0, torch.inf]), "mean").tolist() == [3.0, 0.0]


@pytest.mark.parametrize("aggregation", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_elect_adds_the_parts_that_agree_in_tensors_of_many_blocks(dtype: torch.dtype, aggregation: str) -> None:
    taus = torch.randn(5, 3, 1777, generator=torch.Generator().manual_seed(0), dtype=dtype)
    thresholds = layer_thresholds(taus, 0.3)
    expected = agreeing(trim(taus, thresholds), aggregation).sum(0)
    assert_close(elect(taus, thresholds, aggregation), expected)


def test_tsv_m_joins_the_leading_directions_of_every_task() -> None:
    # r = 2, T = 2: one triple each: 3 e1 e1ᵀ of diag(3, 1), 5 e2 e2ᵀ of diag(2, 5). They are orthogonal already.
    pretrained, taus = [[1.0, 1.0]] * 2, ([[3.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 5.0]])
    found = merged("tsv_m", vectors(*taus, pretrained=pretrained), scaling=2.0)
    assert_close(found, torch.tensor([[7.0, 1.0], [1.0, 11.0]]))


def test_tsv_m_decorrelates_directions_that_tasks_share() -> None:
    # Both keep 3 e1 e1ᵀ and 1 e1 e1ᵀ. U = V = [e1 e1] has the polar factor e1 [1 1]/√2 (it has rank one), so
    # U⊥ diag(3, 1) V⊥ᵀ = e1 (3 + 1)/2 e1ᵀ
    assert_close(
        merged("tsv_m", vectors([[3.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]])), torch.tensor([[2.0, 0], [0, 0]])
    )


def test_iso_c_replaces_the_singular_values_of_the_sum_by_their_mean() -> None:
    # Σ τ = [[0, -4], [2, 0]]: σ = 4, 2 with mean 3, U Vᵀ = [[0, -1], [1, 0]]; α 0.5
    taus = [[1.0, -4.0], [0.0, 0.0]], [[-1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]
    assert_close(merged("iso_c", vectors(*taus), scaling=0.5), torch.tensor([[0.0, -1.5], [1.5, 0.0]]))


@pytest.mark.parametrize("algorithm", ["tsv_m", "iso_c"])
def test_matrix_methods_average_all_other_tensors(algorithm: str) -> None:
    assert_close(merged(algorithm, vectors(*TAUS), scaling=3.0), torch.tensor([3.0, 4.0, -2.0, 8.0]))


@pytest.mark.parametrize("algorithm", ["tsv_m", "iso_c"])
def test_matrix_methods_take_a_matrix_without_rows(algorithm: str) -> None:
    start = {"w": torch.zeros(0, 3)}
    assert merged(algorithm, TaskVectors(start, [start, start])).shape == (0, 3)


def tsv_m_of_the_paper(taus: list[Tensor]) -> Tensor:
    """Gargiulo et al., algorithm 1, with full SVDs: every task's first r/T triples, and Procrustes on both sides."""
    keep = min(taus[0].shape) // len(taus)
    left, middle, right = [], [], []
    for tau in taus:
        u, s, vh = torch.linalg.svd(tau, full_matrices=True)
        left.append(u[:, :keep])
        middle.append(s[:keep])
        right.append(vh[:keep].T)
    p, _, qh = torch.linalg.svd(torch.hstack(left), full_matrices=False)
    r, _, sh = torch.linalg.svd(torch.hstack(right), full_matrices=False)
    return (p @ qh) @ torch.diag(torch.cat(middle)) @ (r @ sh).T


def iso_c_of_the_paper(taus: list[Tensor]) -> Tensor:
    """Marczak et al., algorithm 1, with a full SVD and a diagonal of the mean singular value."""
    total = torch.stack(taus).sum(0)
    u, s, vh = torch.linalg.svd(total, full_matrices=True)
    flat = torch.zeros_like(total)
    flat.fill_diagonal_(s.mean().item())
    return u @ flat @ vh


@pytest.mark.parametrize("shape", [(8, 8), (6, 9), (12, 5)], ids=str)
@pytest.mark.parametrize("algorithm", ["tsv_m", "iso_c"])
def test_matrix_methods_agree_with_their_papers_full_svd(algorithm: str, shape: tuple[int, int]) -> None:
    _, finetuned = random_models({"w": shape}, 2, seed=3)
    taus = [one["w"] for one in finetuned]
    expected = {"tsv_m": tsv_m_of_the_paper, "iso_c": iso_c_of_the_paper}[algorithm](taus)
    found = merged(algorithm, TaskVectors({"w": torch.zeros(shape)}, finetuned), scaling=1.5)
    assert_close(found, 1.5 * expected, rtol=1e-4, atol=1e-5)
