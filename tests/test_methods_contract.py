"""The laws that every fusion algorithm obeys, whatever the shapes; a new algorithm is covered by existing."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vectors import Model, copy, label, merge, model, random_models, variants
from torch import Tensor
from torch.testing import assert_close

from fusion.checkpoint import Checkpoint, save, save_tensors
from fusion.hyperparameters import algorithms, hyperparameters, method_class
from fusion.vectors import TaskVectors

each_variant = pytest.mark.parametrize(("algorithm", "hyper"), variants(), ids=label)
each_algorithm = pytest.mark.parametrize("algorithm", algorithms())
on_any_shapes = settings(max_examples=4, deadline=None, derandomize=True, database=None)
sizes = st.sampled_from([(), (1,), (7,), (1, 1), (3, 1), (1, 4), (4, 3), (2, 3, 2)])
shapes = st.lists(sizes, min_size=1, max_size=3).map(lambda found: dict(zip("zam", found, strict=False)))
tasks = st.integers(1, 4)
seeds = st.integers(0, 99)

# Where one task and a neutral coefficient do not give that model back by the paper's formula, and what does.
NEUTRAL = {"concrete": {"evaluation_mask": "expectation"}}  # σ(0) / mean σ(0) = 1; a drawn or an empty mask is not
NOT_NEUTRAL = {"iso_c": "a single task vector gets a flat spectrum too"}


def neutral(algorithm: str) -> dict[str, Any]:
    """All coordinates, coefficient 1, nothing learned."""
    wanted = {"density": 1.0, "scaling": 1.0, "steps": 0, "adapt_steps": 0} | NEUTRAL.get(algorithm, {})
    return {name: value for name, value in wanted.items() if name in hyperparameters(algorithm).model_fields}


def bits(tensors: Model) -> dict[str, bytes]:
    return {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in tensors.items()
    }


@each_variant
@on_any_shapes
@given(shapes=shapes, tasks=tasks, seed=seeds)
def test_zero_task_vectors_give_the_pretrained_model(algorithm, hyper, shapes, tasks, seed) -> None:
    pretrained, _ = random_models(shapes, 1, seed)
    merged = merge(algorithm, TaskVectors(pretrained, [copy(pretrained)] * tasks), **hyper)
    assert bits(merged.tensors()) == bits(pretrained)


@pytest.mark.parametrize("algorithm", [name for name in algorithms() if name not in NOT_NEUTRAL])
@on_any_shapes
@given(shapes=shapes, seed=seeds)
def test_one_task_with_neutral_coefficients_gives_its_model(algorithm, shapes, seed) -> None:
    pretrained, finetuned = random_models(shapes, 1, seed)
    merged = merge(algorithm, TaskVectors(pretrained, finetuned), **neutral(algorithm))
    assert_close(merged.tensors(), finetuned[0], rtol=1e-5, atol=1e-5)


def test_iso_c_gives_a_single_model_back_only_if_its_spectrum_is_flat_already() -> None:
    start, rotation, stretch = (
        model([[0.0, 0.0]] * 2),
        model([[0.6, 0.8], [-0.8, 0.6]]),
        model([[3.0, 0.0], [0.0, 1.0]]),
    )
    assert_close(merge("iso_c", TaskVectors(start, [rotation])).tensors(), rotation)
    assert_close(merge("iso_c", TaskVectors(start, [stretch])).tensors(), model([[2.0, 0.0], [0.0, 2.0]]))


SCALED = [(name, hyper) for name, hyper in variants() if "scaling" in hyperparameters(name).model_fields]


@pytest.mark.parametrize(
    ("algorithm", "hyper"), [one for one in SCALED if method_class(one[0]) == "data-free"], ids=label
)
@on_any_shapes
@given(shapes=shapes, tasks=tasks, seed=seeds)
def test_scaling_multiplies_the_merged_task_vector_of_a_data_free_method(algorithm, hyper, shapes, tasks, seed) -> None:
    vectors = TaskVectors(*random_models(shapes, tasks, seed))
    direct = merge(algorithm, vectors, **hyper, scaling=0.6)
    assert_close(merge(algorithm, vectors, **hyper, scaling=1.0).held().at(0.6).tensors(), direct.tensors())


@each_variant
@on_any_shapes
@given(shapes=shapes, tasks=tasks, seed=seeds)
def test_order_of_tasks_does_not_matter(algorithm, hyper, shapes, tasks, seed) -> None:
    pretrained, finetuned = random_models(shapes, tasks, seed)
    there, back = (merge(algorithm, TaskVectors(pretrained, order), **hyper) for order in (finetuned, finetuned[::-1]))
    assert_close(there.tensors(), back.tensors(), rtol=1e-4, atol=1e-5)


@each_variant
@on_any_shapes
@given(shapes=shapes, tasks=tasks, seed=seeds)
def test_order_of_layers_does_not_matter(algorithm, hyper, shapes, tasks, seed) -> None:
    pretrained, finetuned = random_models(shapes, tasks, seed)
    reverse = {name: pretrained[name] for name in reversed(pretrained)}
    one, other = (merge(algorithm, TaskVectors(start, finetuned), **hyper).tensors() for start in (pretrained, reverse))
    assert list(other) == list(reversed(one))
    assert_close(one, {name: other[name] for name in one}, rtol=1e-5, atol=1e-6)


@each_variant
@on_any_shapes
@given(shapes=shapes, tasks=tasks, seed=seeds)
def test_inputs_are_never_modified_nor_shared_with_the_result(algorithm, hyper, shapes, tasks, seed) -> None:
    pretrained, finetuned = random_models(shapes, tasks, seed)
    for tensors in (pretrained, *finetuned):
        tensors["steps"] = torch.tensor(5)
    before = [bits(tensors) for tensors in (pretrained, *finetuned)]
    merged = merge(algorithm, TaskVectors(pretrained, finetuned), **hyper)
    for tensor in merged.tensors().values():
        tensor.add_(1)
    assert [bits(tensors) for tensors in (pretrained, *finetuned)] == before


@each_variant
@on_any_shapes
@given(shapes=shapes, tasks=tasks, seed=seeds)
def test_the_same_generator_state_gives_the_same_bytes(algorithm, hyper, shapes, tasks, seed) -> None:
    taus = TaskVectors(*random_models(shapes, tasks, seed))
    first, again = (bits(merge(algorithm, taus, seed=seed, **hyper).tensors()) for _ in range(2))
    assert first == again


@each_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtype_and_shapes_are_those_of_the_pretrained_model(algorithm, hyper, dtype) -> None:
    pretrained, finetuned = random_models({"a": (), "b": (3,), "c": (2, 3), "d": (2, 1, 2)}, 2, dtype=dtype)
    merged = merge(algorithm, TaskVectors(pretrained, finetuned), **hyper).tensors()
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in merged.items()}
    assert found == {name: (tensor.dtype, tensor.shape) for name, tensor in pretrained.items()}


@each_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32_and_rounded_once(algorithm, hyper, dtype) -> None:
    pretrained, finetuned = random_models({"a": (), "b": (50,), "c": (6, 5)}, 3, dtype=dtype)
    wide = TaskVectors(
        {k: v.float() for k, v in pretrained.items()}, [{k: v.float() for k, v in m.items()} for m in finetuned]
    )
    expected = {name: tensor.to(dtype) for name, tensor in merge(algorithm, wide, **hyper).layers()}
    assert bits(merge(algorithm, TaskVectors(pretrained, finetuned), **hyper).tensors()) == bits(expected)


SPECIAL = {
    "constant": [torch.full((3, 3), 0.5), torch.full((4,), 0.5)],
    "one element": [torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]])],  # also empty after the trim
    "one huge element": [torch.tensor([[1e30, 1e-3], [0.0, 1.0]]), torch.tensor([1e30])],
    "huge": [torch.full((3, 2), 1e30), torch.tensor([1e30, -1e30])],
    "tiny": [torch.full((3, 2), 1e-30), torch.tensor([1e-40, 0.0])],
    "rank one": [torch.outer(torch.arange(3.0), torch.arange(4.0))],
}  # fmt: skip


@each_variant
@pytest.mark.parametrize("kind", SPECIAL)
def test_result_is_finite_on_special_tensors(algorithm, hyper, kind) -> None:
    pretrained = {str(i): torch.zeros_like(tensor) for i, tensor in enumerate(SPECIAL[kind])}
    finetuned = [{str(i): factor * tensor for i, tensor in enumerate(SPECIAL[kind])} for factor in (1.0, -0.5, 1.0)]
    merged = merge(algorithm, TaskVectors(pretrained, finetuned), **hyper).tensors()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in merged.values())


@pytest.mark.parametrize("algorithm", ["task_arithmetic", "iso_c", "tsv_m"])
def test_a_result_beyond_float32_is_an_error_and_not_infinity(algorithm) -> None:
    taus = TaskVectors(model([[0.0, 0.0]] * 2), [model([[3e38, 3e38], [3e38, -3e38]])] * 2)
    with pytest.raises(ValueError, match="float32"):
        merge(algorithm, taus, scaling=1.0).tensors()


def with_buffers(tensors: Model) -> Model:
    """Odd-sized first, so that what follows is not aligned by luck."""
    return {"mask": torch.tensor([True, False, True])} | tensors | {"steps": torch.tensor(5)}


@each_variant
def test_buffers_are_copied_from_the_pretrained_model(algorithm, hyper) -> None:
    pretrained, finetuned = random_models({"a": (3,), "b": (2, 2)}, 2)
    pretrained, finetuned = with_buffers(pretrained), [with_buffers(tensors) for tensors in finetuned]
    merged = merge(algorithm, TaskVectors(pretrained, finetuned), **hyper).tensors()
    assert list(merged) == list(pretrained)
    assert [merged[name].tolist() for name in ("mask", "steps")] == [[True, False, True], 5]
    assert merged["mask"].dtype is torch.bool


@each_variant
def test_streaming_from_disk_to_disk_equals_merging_in_memory(algorithm, hyper, tmp_path: Path) -> None:
    pretrained, finetuned = random_models({"z": (3, 4), "a": (5,), "m": (), "b": (2, 2, 2)}, 3)
    pretrained, finetuned = with_buffers(pretrained), [with_buffers(tensors) for tensors in finetuned]
    paths = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for path, tensors in zip(paths, (pretrained, *finetuned), strict=True):
        save_tensors(path, tensors)
    start, *models = (Checkpoint(path) for path in paths)
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in start.items()}
    save(tmp_path / "merged.safetensors", layout, merge(algorithm, TaskVectors(start, models), **hyper).layers())
    in_memory = merge(algorithm, TaskVectors(pretrained, finetuned), **hyper).tensors()
    streamed = dict(Checkpoint(tmp_path / "merged.safetensors"))
    assert bits(streamed) == bits({name: in_memory[name] for name in streamed})


@each_algorithm
def test_a_layer_that_the_objective_ignores_does_not_stop_the_merge(algorithm) -> None:
    def first_layer(params: dict[str, Tensor]) -> Tensor:
        return (params["a"] - 1).square().sum()

    short = {name: 3 for name in hyperparameters(algorithm).model_fields if name.endswith("steps")}
    taus = TaskVectors(*random_models({"a": (3,), "unused": (2, 2)}, 2))
    merged = merge(algorithm, taus, objective=first_layer, **short).tensors()
    assert math.isfinite(merged["unused"].sum().item())
