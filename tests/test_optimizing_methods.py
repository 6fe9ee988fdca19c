"""WUDI, DOGE and SVC by hand, and as their papers or authors write them, with autograd and full SVDs."""

from typing import Any

import pytest
import torch
from tiny_vectors import merge, model, random_models, tensors, vectors
from torch import Tensor
from torch.testing import assert_close

from fusion.methods._adam import descend
from fusion.methods.doge import shared_subspace
from fusion.vectors import Merged, TaskVectors

EYE, FIRST = [[2.0, 0.0], [0.0, 2.0]], [[4.0, 0.0], [0.0, 0.0]]


def merged(algorithm: str, taus: TaskVectors, **hyper: Any) -> Tensor:
    return tensors(merge(algorithm, taus, **hyper))["w"]


def random_taus(*shape: int, count: int = 3, dtype: torch.dtype = torch.float64) -> tuple[TaskVectors, Tensor]:
    pretrained, finetuned = random_models({"w": shape}, count, seed=4, dtype=dtype)
    stacked = torch.stack([one["w"] - pretrained["w"] for one in finetuned])
    return TaskVectors({"w": torch.zeros_like(stacked[0])}, [{"w": tau} for tau in stacked]), stacked


def interference(merged: Tensor, taus: Tensor) -> Tensor:
    """Σ_t ‖(τ − τ_t) τ_tᵀ‖² / ‖τ_t‖²."""
    return torch.stack([((merged - tau) @ tau.T).square().sum() / tau.square().sum() for tau in taus]).sum()


def test_wudi_in_closed_form_by_hand() -> None:
    # Ĝ_1 = 4 I / 8 = I / 2, Ĝ_2 = diag(16, 0) / 16. Σ τ Ĝ = I + diag(4, 0), Σ Ĝ = diag(3/2, 1/2)
    found = merged("wudi", vectors(EYE, FIRST, pretrained=[[1.0, 1.0]] * 2), solver="closed_form")
    assert_close(found, torch.tensor([[1 + 10 / 3, 1.0], [1.0, 3.0]]))


def test_a_wudi_step_by_hand() -> None:
    # gradient 2 (diag(6, 2) Σ Ĝ − diag(5, 1)) = diag(8, 0): Adam's first step is lr against its sign
    assert_close(merged("wudi", vectors(EYE, FIRST), steps=1, lr=0.5), torch.tensor([[5.5, 0.0], [0.0, 2.0]]))


def test_wudi_takes_the_papers_steps() -> None:
    taus, stacked = random_taus(5, 4)
    start = stacked.sum(0).requires_grad_()
    adam = torch.optim.Adam([start], lr=0.01)
    for _ in range(30):
        adam.zero_grad()
        interference(start, stacked).backward()
        adam.step()
    assert_close(merged("wudi", taus, steps=30, lr=0.01), start.detach())


@pytest.mark.parametrize("shape", [(4, 4), (6, 3)], ids=str)
def test_the_two_solvers_of_wudi_meet(shape: tuple[int, int]) -> None:
    taus, stacked = random_taus(*shape, count=6)
    adam, exact = merged("wudi", taus, steps=400, lr=0.05), merged("wudi", taus, solver="closed_form")
    assert_close(adam, exact, rtol=1e-3, atol=1e-3)
    assert interference(exact, stacked) <= interference(adam, stacked) + 1e-12


def test_wudi_in_closed_form_leaves_directions_alone_that_no_task_uses() -> None:
    # Only the first of three columns is used: the second and third of Σ Ĝ are zero
    found = merged("wudi", vectors([[1.0, 0.0, 0.0]], [[3.0, 0.0, 0.0]]), solver="closed_form")
    assert_close(found, torch.tensor([[2.0, 0.0, 0.0]]))


@pytest.mark.parametrize("solver", ["adam", "closed_form"])
def test_wudi_leaves_a_single_task_vector_as_it_is(solver: str) -> None:
    taus, stacked = random_taus(4, 3, count=1, dtype=torch.float32)
    assert_close(merged("wudi", taus, solver=solver), stacked[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["wudi", "doge"])
def test_tensors_that_are_no_matrix_are_averaged(algorithm: str) -> None:
    assert merged(algorithm, vectors([1.0, 4.0], [3.0, 0.0])).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("algorithm", ["wudi", "doge", "task_arithmetic + svc", "slerp", "karcher", "model_stock"])
def test_a_matrix_without_numbers_stays_one(algorithm: str, shape: tuple[int, int]) -> None:
    start = {"w": torch.zeros(shape)}
    assert merged(algorithm, TaskVectors(start, [start, start])).shape == shape
    if algorithm == "wudi":
        assert merged(algorithm, TaskVectors(start, [start, start]), solver="closed_form").shape == shape


def test_doge_without_steps_gives_every_task_vector_the_same_length() -> None:
    # ‖τ_1‖ = 5, ‖τ_2‖ = 2; η 1; of four coordinates the two largest are kept, which drops the 0.0 alone
    taus = vectors([[3.0, 0.0], [0.0, 4.0]], [[0.0, 2.0], [0.0, 0.0]], pretrained=[[1.0, 1.0]] * 2)
    found = merged("doge", taus, steps=0, scaling=1.0, density=0.5)
    assert_close(found, torch.tensor([[1.6, 2.0], [1.0, 1.8]]))


def test_doge_trims_by_the_largest_coordinates_of_the_whole_model() -> None:
    start = model([[0.0, 0.0]], "a") | model([[0.0, 0.0]], "b")
    taus = TaskVectors(start, [model([[3.0, 4.0]], "a") | model([[0.6, 0.8]], "b")])
    found = merge("doge", taus, steps=0, scaling=1.0, density=0.5).tensors()
    assert_close(found, model([[0.6, 0.8]], "a") | model([[0.0, 0.0]], "b"))


def test_a_doge_step_by_hand() -> None:
    # λ = 1/5, residuals 3 (3 − 0.6) and 4 (4 − 0.8) by rows, gradient −2/5 residual τ: Δ is lr where τ is not zero,
    # and the merged (3 + 0.1) / 5 and (4 + 0.1) / 5. A 2 × 2 matrix has no shared subspace: ⌊2/6⌋ = 0.
    found = merged("doge", vectors([[3.0, 0.0], [0.0, 4.0]]), steps=1, lr=0.1, scaling=1.0, density=1.0)
    assert_close(found, torch.tensor([[0.62, 0.0], [0.0, 0.82]]))


@pytest.mark.parametrize(("tasks", "subspace"), [(2, 100), (80, 6)])
def test_doge_of_too_many_tasks_or_too_small_a_subspace_has_none(tasks: int, subspace: int) -> None:
    taus = torch.randn(tasks, 70, 72, generator=torch.Generator().manual_seed(0))
    assert shared_subspace(taus, subspace).shape == (70, 0)


def doge_of_the_authors(taus: Tensor, density: float, eta: float, subspace: int, steps: int, lr: float) -> Tensor:
    """One matrix (T, m, n) with full SVDs, autograd and the loss as it is printed."""
    rank = min(taus.shape[1:])
    lambdas = [eta / tau.norm() for tau in taus]
    tops = [torch.linalg.svd(tau, full_matrices=False).U[:, : rank // len(taus)] for tau in taus]
    basis = torch.linalg.svd(torch.hstack(tops), full_matrices=False).U[:, : rank // subspace]
    delta = torch.zeros_like(taus[0], requires_grad=True)
    adam = torch.optim.Adam([delta], lr=lr)
    for _ in range(steps):
        total = sum(scale * (tau + delta) for scale, tau in zip(lambdas, taus, strict=True))
        loss = torch.stack([(tau * (tau - total)).sum(1).square().sum() for tau in taus]).sum()
        (gradient,) = torch.autograd.grad(loss, [delta])
        delta.grad = gradient - basis @ basis.T @ gradient
        adam.step()
    found = torch.zeros_like(taus[0])
    for scale, tau in zip(lambdas, taus, strict=True):
        limit = tau.abs().flatten().sort(descending=True).values[int(density * tau.numel()) - 1]
        found += scale * (tau + delta.detach()) * (tau.abs() >= limit)
    return found


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_doge_agrees_with_its_authors_loss(size: float) -> None:
    _, stacked = random_taus(13, 14)
    stacked = size * stacked
    taus = TaskVectors({"w": torch.zeros_like(stacked[0])}, [{"w": tau} for tau in stacked])
    found = merged("doge", taus, density=0.5, steps=20, lr=1e-4, subspace=6)
    assert_close(found, doge_of_the_authors(stacked, 0.5, 0.07, 6, 20, 1e-4), rtol=1e-6, atol=1e-9)


def test_steps_of_adam_are_those_of_torch() -> None:
    """To the bit; and several matrices at once are each by itself."""
    rng = torch.Generator().manual_seed(2)
    matrices, targets = torch.randn(3, 4, 5, generator=rng), torch.randn(3, 4, 5, generator=rng)
    epsilons = torch.tensor([1e-8, 1e-3, 1.0])[:, None, None]
    together = descend(matrices.clone(), lambda x: x - targets, 20, 0.1, epsilons)
    for x, target, epsilon, found in zip(matrices, targets, epsilons, together, strict=True):
        parameter = x.clone()
        adam = torch.optim.Adam([parameter], lr=0.1, eps=epsilon.item())
        for _ in range(20):
            parameter.grad = parameter - target
            adam.step()
        assert torch.equal(found, parameter)


def test_doge_moves_only_off_the_shared_subspace() -> None:
    # One task of rank one: its left singular vector is shared, and the gradient lies along it
    tau = torch.outer(torch.arange(1.0, 7.0), torch.arange(1.0, 7.0))
    taus = TaskVectors({"w": torch.zeros(6, 6)}, [{"w": tau}])
    still, moved = (merged("doge", taus, steps=10, lr=1e-2, subspace=s, density=1.0) for s in (6, 7))
    assert_close(still, 0.07 * tau / tau.norm(), rtol=1e-3, atol=1e-4)
    assert (moved - still).abs().max() > 1e-4


def test_svc_divides_by_how_often_the_tasks_count_a_direction() -> None:
    # Δ = diag(4, 2). Along e1 both tasks have 2: s = 4 · 2 / 4 = 2, γ = 1/2. Along e2 task 1 has none: α; s_2 = 1.
    taus = vectors([[2.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 2.0]], pretrained=[[1.0, 1.0]] * 2)
    hyper = {"task_arithmetic.scaling": 1.0}
    found = merged("task_arithmetic + svc", taus, **hyper, **{"svc.alpha": 0.5})
    assert_close(found, torch.tensor([[3.0, 1.0], [1.0, 1 + 2 * 2 / 1.5]]))
    bounded = merged("task_arithmetic + svc", taus, **hyper, **{"svc.alpha": 1.0})
    assert_close(bounded, torch.tensor([[3.0, 1.0], [1.0, 3.0]]))


def test_svc_sees_the_update_at_its_scaling() -> None:
    # Half of the above: s = 1 along e1; along e2 0 and 1/2, both raised to α
    taus = vectors([[2.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 2.0]])
    found = merged("task_arithmetic + svc", taus, **{"task_arithmetic.scaling": 0.5, "svc.alpha": 1.0})
    assert_close(found, torch.tensor([[2.0, 0.0], [0.0, 1.0]]))


def svc_of_the_paper(update: Tensor, taus: Tensor, alpha: float) -> Tensor:
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    for r in range(len(s)):
        ours, theirs = u[:, r] @ update, [u[:, r] @ tau for tau in taus]
        s[r] *= len(taus) / sum(max(alpha, float(ours @ a / (a @ a))) for a in theirs)
    return u @ torch.diag(s) @ vh


@pytest.mark.parametrize("shape", [(6, 9), (7, 4)], ids=str)
def test_svc_agrees_with_the_papers_loop_over_directions(shape: tuple[int, int]) -> None:
    taus, stacked = random_taus(*shape)
    found = merged("task_arithmetic + svc", taus, **{"task_arithmetic.scaling": 0.8, "svc.alpha": 0.2})
    assert_close(found, svc_of_the_paper(0.8 * stacked.sum(0), stacked, 0.2))


def test_svc_leaves_other_tensors_as_they_were_merged() -> None:
    assert merged("task_arithmetic + svc", vectors([1.0, 4.0], [3.0, 0.0])).tolist() == pytest.approx([1.2, 1.2])
    found = merge("task_arithmetic + svc", vectors(EYE, FIRST))
    assert isinstance(found, Merged) and found.scaling is None
