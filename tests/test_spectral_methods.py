"""Methods on singular values: their decompositions against full SVDs in float64, and worked examples."""

import logging

import pytest
import torch
from tiny_vectors import merge, model, random_models, vectors
from torch import Tensor
from torch.testing import assert_close

from fusion.methods import _spectrum
from fusion.methods._spectrum import leading, polar, rounding, svd
from fusion.methods.iso_c import flatten_spectrum
from fusion.methods.tsv_m import decorrelate
from fusion.vectors import TaskVectors

SHAPES = [(96, 96), (70, 150), (150, 70)]


def merged(pipeline: str, taus: TaskVectors, **values: object) -> Tensor:
    return merge(pipeline, taus, **values).tensors()["w"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(name: str, count: int) -> Tensor:
    """The singular values of that name, (count,) in float64."""
    gap = torch.cat([torch.ones(8), torch.full((count - 8,), 0.4)])  # both repeated
    rank_8 = torch.cat([torch.logspace(0, -1.5, 8), torch.zeros(count - 8)])
    known = {"flat": torch.linspace(1, 0.5, count), "decaying": torch.logspace(0, -6, count)}
    return (known | {"repeated": gap, "rank 8": rank_8})[name].double()


def matrix(name: str, shape: tuple[int, int]) -> Tensor:
    """A float32 matrix with the spectrum of that name; 'normal' has independent normal entries."""
    if name == "normal":
        return normal(*shape).float()
    count = min(shape)
    u, v = (torch.linalg.qr(normal(size, count, seed=size)).Q for size in shape)
    return ((u * spectrum(name, count)) @ v.T).float()


def exact(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, σ, V in float64, without the σ that are rounding of the float32 matrix."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    rank = int((s > rounding(matrix) * s[0]).sum())
    return u[:, :rank], s[:rank], vh[:rank].T


def distance(found: Tensor, expected: Tensor) -> float:
    return torch.linalg.matrix_norm(found.double() - expected, 2).item()


each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_spectrum = pytest.mark.parametrize("name", ["normal", "flat", "decaying", "repeated", "rank 8"])


@each_shape
@each_spectrum
def test_leading_triples_are_those_of_the_full_svd(name: str, shape: tuple[int, int]) -> None:
    given = matrix(name, shape)
    u, s, v = (part[..., :8] for part in exact(given))
    found = leading(given, 8)
    assert_close(found.s.double(), s, rtol=1e-5, atol=0)
    for side in (found.u, found.v):
        assert_close(side.T @ side, torch.eye(8), rtol=0, atol=1e-5)
    if name == "normal" or s[-1] > 1.05 * exact(given)[1][8:9].sum():  # the eighth and the ninth are apart
        assert distance((found.u * found.s) @ found.v.T, (u * s) @ v.T) < 2e-5 * s[0]


@each_shape
@each_spectrum
def test_all_triples_together_are_the_matrix(name: str, shape: tuple[int, int]) -> None:
    given = matrix(name, shape)
    u, s, v = leading(given, min(shape))
    assert len(s) == len(exact(given)[1])
    assert distance((u * s) @ v.T, given.double()) < max(shape) * 2e-7 * s[0]


@each_shape
@each_spectrum
def test_the_polar_factor_is_about_as_exact_as_that_of_a_full_svd(name: str, shape: tuple[int, int]) -> None:
    given = matrix(name, shape)
    u, _, v = exact(given)
    full = svd(given)
    error = distance(full.u @ full.v.T, u @ v.T)
    assert distance(polar(given), u @ v.T) < max(4 * error, 1e-5)


@each_shape
@each_spectrum
def test_iso_c_gives_every_direction_the_mean_singular_value(name: str, shape: tuple[int, int]) -> None:
    given = matrix(name, shape)
    u, s, v = exact(given)
    assert distance(flatten_spectrum(given), s.mean() * (u @ v.T)) < (5e-3 if name == "decaying" else 2e-5) * s.mean()


@pytest.mark.parametrize("scale", [1e30, 1e-30])
@pytest.mark.parametrize("name", ["normal", "decaying"])
def test_huge_and_tiny_matrices_have_the_same_singular_vectors(name: str, scale: float) -> None:
    given = matrix(name, (70, 150))
    assert_close(polar(scale * given), polar(given), rtol=0, atol=1e-3)
    assert_close(leading(scale * given, 5).s / scale, leading(given, 5).s)


@pytest.mark.parametrize("shape", [(1, 1), (0, 3), (3, 0), (5, 4), (80, 70), (70, 80)], ids=str)
def test_a_zero_or_empty_matrix_has_no_triples(shape: tuple[int, int]) -> None:
    zero = torch.zeros(shape)
    assert [part.shape for part in leading(zero, 2)] == [(shape[0], 0), (0,), (shape[1], 0)]
    assert torch.equal(polar(zero), zero)
    assert torch.equal(flatten_spectrum(zero), zero)


def test_float64_matrices_keep_their_precision() -> None:
    u, v = torch.linalg.qr(normal(90, 80)).Q, torch.linalg.qr(normal(80, 80, seed=1)).Q
    s = torch.logspace(0, -9, 80, dtype=torch.float64)
    found = leading((u * s) @ v.T, 80)
    assert_close(found.s, s, rtol=1e-5, atol=0)
    assert_close(found.u @ found.v.T, u @ v.T, rtol=0, atol=1e-5)


def test_inexact_singular_vectors_are_replaced_by_those_of_a_full_svd_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = matrix("decaying", (90, 80))
    monkeypatch.setattr(_spectrum, "STRONG", 1e-6)  # trusts what the Gram matrix has lost
    with caplog.at_level(logging.WARNING):
        found = leading(given, 80)
    assert "(90, 80) matrix by a full SVD" in caplog.text
    assert torch.equal(found.s, svd(given).s)


def test_singular_values_beyond_float32_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"overflow torch\.float32"):
        leading(torch.full((70, 70), 3e38), 1)


@pytest.mark.parametrize("algorithm", ["tsv_m", "iso_c", "iso_cts", "cart", "knots", "core_space"])
def test_large_matrices_merge_to_the_same_bytes_with_any_number_of_threads(algorithm: str) -> None:
    taus, before, found = TaskVectors(*random_models({"w": (90, 70)}, 3)), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(merged(algorithm, taus))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def nearest_orthonormal(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def cut(matrix: Tensor, count: int) -> Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :count] @ torch.diag(s[:count]) @ vh[:count]


def tsv_m_of_the_paper(taus: Tensor) -> Tensor:
    """Gargiulo et al., algorithm 1."""
    keep = min(taus.shape[1:]) // len(taus)
    u, s, vh = torch.linalg.svd(taus, full_matrices=False)
    left, right = (torch.cat(list(part[:, :, :keep]), dim=1) for part in (u, vh.mT))
    return nearest_orthonormal(left) @ torch.diag(s[:, :keep].reshape(-1)) @ nearest_orthonormal(right).T


def iso_cts_of_the_paper(taus: Tensor) -> Tensor:
    """Marczak et al., algorithm 2, with 80 % common directions; for a rank of which T divides the rest."""
    rank, tasks = min(taus.shape[1:]), len(taus)
    common = int(0.8 * rank)
    each = (rank - common) // tasks
    assert common + each * tasks == rank
    u, s, vh = torch.linalg.svd(taus.sum(0), full_matrices=False)
    left, values, right = [u[:, :common]], [s[:common]], [vh[:common].T]
    for tau in taus:
        a, b, ch = torch.linalg.svd(tau - left[0] @ left[0].T @ tau, full_matrices=False)
        left, values, right = [*left, a[:, :each]], [*values, b[:each]], [*right, ch[:each].T]
    flat = torch.cat(values).mean() * torch.eye(rank, dtype=taus.dtype)
    return nearest_orthonormal(torch.cat(left, dim=1)) @ flat @ nearest_orthonormal(torch.cat(right, dim=1)).T


def cart_of_the_paper(taus: Tensor) -> Tensor:
    """Choi et al., with 8 % of the rank, rounded up, and λ = 1."""
    mean = taus.mean(0)
    return mean + sum(cut(tau - mean, -(-8 * min(mean.shape) // 100)) for tau in taus)


@pytest.mark.parametrize("shape", [(80, 80), (80, 110), (110, 80)], ids=str)
@pytest.mark.parametrize("algorithm", ["tsv_m", "iso_cts", "cart"])
def test_spectral_methods_agree_with_their_papers_full_svds(algorithm: str, shape: tuple[int, int]) -> None:
    taus = normal(4, *shape, seed=5)
    papers = {"tsv_m": tsv_m_of_the_paper, "iso_cts": iso_cts_of_the_paper, "cart": cart_of_the_paper}
    given = TaskVectors.of_deltas(model(torch.zeros(shape).tolist()), [{"w": tau.float()} for tau in taus])
    assert_close(merged(algorithm, given).double(), papers[algorithm](taus), rtol=1e-3, atol=1e-3)


def test_the_parts_of_tsv_m_sum_to_its_merged_model() -> None:
    taus = TaskVectors(*random_models({"w": (7, 9), "b": (4,)}, 3))
    summed = merge("tsv_m + task_arithmetic", taus, **{"task_arithmetic.scaling": 1.0})
    assert_close(summed.tensors(), merge("tsv_m", taus).tensors())


def test_tsv_m_has_no_more_directions_than_low_rank_updates() -> None:
    left, right, counts = decorrelate((normal(2, 80, 3) @ normal(2, 3, 90)).float())
    assert (left.shape, right.shape, counts) == ((80, 6), (90, 6), [3, 3])


def test_iso_cts_adds_own_directions_of_each_task_to_the_common_ones() -> None:
    # r = 3: k = ⌊0.4 · 3⌋ = 1 of Σ τ = diag(10, 2, 1): 10 e1 e1ᵀ. Outside e1: 2 e2 e2ᵀ of task 1, 1 e3 e3ᵀ of task 2.
    # σ̄ = (10 + 2 + 1)/3; α 3
    taus = [[5.0, 0, 0], [0, 2.0, 0], [0, 0, 0.0]], [[5.0, 0, 0], [0, 0.0, 0], [0, 0, 1.0]]
    assert_close(merged("iso_cts", vectors(*taus), common_fraction=0.4, scaling=3.0), 13 * torch.eye(3))


def test_iso_cts_leaves_rounding_out_where_the_common_directions_hold_everything() -> None:
    # Σ τ has rank 2, ⌊0.8 · 6⌋ = 4 directions hold both; σ̄ = (2 + 1)/2
    given = torch.zeros(2, 6, 6)
    given[0, 0, 0], given[1, 1, 1] = 2.0, 1.0
    assert_close(merged("iso_cts", vectors(*given.tolist())), torch.diag(torch.tensor([1.5, 1.5, 0, 0, 0, 0])))


def test_iso_cts_with_common_directions_alone_is_iso_c() -> None:
    taus = TaskVectors(*random_models({"w": (9, 12)}, 3))
    assert_close(merged("iso_cts", taus, common_fraction=1.0), merged("iso_c", taus))


def test_cart_adds_the_leading_directions_of_the_centred_task_vectors() -> None:
    # Mean diag(2, 1). Centred: diag(4, -1), diag(-2, 5), diag(-2, -4); of each the larger: diag(4, 5 - 4); λ 0.5
    taus = [[6.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 6.0]], [[0.0, 0.0], [0.0, -3.0]]
    found = merged("cart", vectors(*taus), rank_fraction=0.5, scaling=0.5)
    assert_close(found, torch.tensor([[4.0, 0.0], [0.0, 1.5]]))


def test_knots_trims_and_elects_in_the_common_left_basis() -> None:
    # One direction u = (1, 1)/√2, so 2 coordinates a task, in proportion (2, 1) and (-1, 3). Half of them: 2, and 3
    taus = [[2.0, 1.0], [2.0, 1.0]], [[-1.0, 3.0], [-1.0, 3.0]]
    for scope in ("global", "layer"):
        found = merged("knots", vectors(*taus), density=0.5, scaling=2.0, scope=scope)
        assert_close(found, torch.tensor([[4.0, 6.0], [4.0, 6.0]]))


def test_knots_compares_directions_with_or_without_their_singular_values() -> None:
    # [τ1 τ2] has the rows (8, 0, 6, 0), σ = 10, and (0, 1, 0, 0), σ = 1: V = (.8, 0), (0, 1) and (.6, 0), (0, 0).
    # A quarter of 4 coordinates: of V, 1 and .6; of Σ V, 8 and 6, with mean 7
    taus = [[8.0, 0.0], [0.0, 1.0]], [[6.0, 0.0], [0.0, 0.0]]
    paper, code = (
        merged("knots", vectors(*taus), density=0.25, scaling=1.0, singular_values=value)
        for value in ("basis", "coordinates")
    )
    assert_close(paper, torch.tensor([[6.0, 0.0], [0.0, 1.0]]))
    assert_close(code, torch.tensor([[7.0, 0.0], [0.0, 0.0]]))


def test_knots_drops_coordinates_and_not_entries() -> None:
    # Along one direction (2, 1) and (-1, 3), each number doubled or dropped
    taus = vectors([[2.0, 1.0], [2.0, 1.0]], [[-1.0, 3.0], [-1.0, 3.0]])
    drawn = [merge("knots", taus, seed=s, inner="dare", density=0.5, scaling=1.0).tensors()["w"] for s in range(12)]
    assert all(torch.allclose(found[0], found[1]) for found in drawn)
    assert {round(found[0, 0].item()) for found in drawn} == {0, 4, -2, 2}
    assert {round(found[0, 1].item()) for found in drawn} == {0, 2, 6, 8}


def test_core_space_elects_in_the_common_left_and_right_bases() -> None:
    # u = (1, 1)/√2; v = (1, 1)/√2 and (1, -1)/√2. Core matrices (4, 0) and (0, 2): nothing in conflict, so both stay
    taus = [[2.0, 2.0], [2.0, 2.0]], [[1.0, -1.0], [1.0, -1.0]]
    for scope in ("global", "layer"):
        found = merged("core_space", vectors(*taus), density=1.0, scaling=1.0, scope=scope)
        assert_close(found, torch.tensor([[3.0, 1.0], [3.0, 1.0]]))


@pytest.mark.parametrize("algorithm", ["knots", "core_space"])
def test_no_information_is_lost_in_the_common_basis(algorithm: str) -> None:
    low_rank = (normal(3, 80, 2) @ normal(3, 2, 90)).float()
    for deltas in (low_rank, normal(3, 8, 5).float()):
        start = model(torch.zeros(deltas.shape[1:]).tolist())
        taus = TaskVectors.of_deltas(start, [{"w": delta} for delta in deltas])
        found = merged(algorithm, taus, inner="task_arithmetic", scaling=0.7)
        assert_close(found, 0.7 * deltas.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algorithm", ["iso_cts", "cart", "knots", "core_space"])
def test_spectral_methods_average_all_other_tensors(algorithm: str) -> None:
    found = merged(algorithm, vectors([3.0, 0.0, 6.0], [0.0, 3.0, -3.0], [0.0, 0.0, 0.0]), scaling=1.0)
    assert_close(found, torch.tensor([1.0, 1.0, 1.0]))
