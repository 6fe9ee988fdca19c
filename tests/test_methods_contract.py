"""The laws that every fusion algorithm obeys, whatever the shapes; a new algorithm is covered by existing."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import CONTENT, NEUTRAL, NOT_A_FACTOR, NOT_NEUTRAL, ORDER_OF_LAYERS, ORDER_OF_TASKS, TASKS
from tiny_vectors import Model, copy, label, merge, model, pipelines, random_models, tensors, variants
from torch import Tensor
from torch.testing import assert_close

from fusion.checkpoint import Checkpoint, save, save_tensors
from fusion.hyperparameters import fields
from fusion.pipelines import algorithms, needs, parts, prefix, scaling_name
from fusion.plan import ROWS
from fusion.vectors import Merged, TaskModels, TaskVectors

each_variant = pytest.mark.parametrize(("algorithm", "hyper"), variants(), ids=label)
on_any_shapes = settings(max_examples=4, deadline=None, derandomize=True, database=None)
sizes = st.sampled_from([(), (1,), (7,), (0, 3), (1, 1), (3, 1), (1, 4), (4, 3), (2, 3, 2)])
shapes = st.lists(sizes, min_size=1, max_size=3).map(
    lambda found: dict(zip(("blocks.2.z", "blocks.0.a", "m"), found, strict=False))
)
counts = st.integers(1, 4)
seeds = st.integers(0, 99)


def tasks(algorithm: str, count: int) -> int:
    """That many tasks, or the nearest number that the algorithm merges."""
    least, most = next((TASKS[part] for part in parts(algorithm) if part in TASKS), (1, 4))
    return min(max(count, least), most)


def obeying(excused: dict[str, str]) -> Any:
    """All variants but those of the algorithms, or of an algorithm with an option, that are excused."""

    def is_excused(pipeline: str, hyper: dict[str, Any]) -> bool:
        names = parts(pipeline)
        return any(f"{name} {value}".removesuffix(" ") in excused for name in names for value in ("", *hyper.values()))

    bound = [one for one in variants() if not is_excused(*one.values)]
    return pytest.mark.parametrize(("algorithm", "hyper"), bound, ids=label)


def neutral(algorithm: str) -> dict[str, Any]:
    """All coordinates, coefficient 1, nothing learned."""
    usual = {"density": 1.0, "scaling": 1.0, "steps": 0, "adapt_steps": 0}
    special = {part: NEUTRAL.get(part, {}) for part in parts(algorithm)}
    found = {name: usual.get(name.split(".")[-1]) for name in fields(algorithm)}
    return {name: value for name, value in found.items() if value is not None} | {
        prefix(algorithm, part) + name: value for part, own in special.items() for name, value in own.items()
    }


def bits(found: Model) -> dict[str, bytes]:
    return {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in found.items()
    }


def models(merged: Merged | TaskModels) -> list[Model]:
    """The one model, or that of every task."""
    count = 1 if isinstance(merged, Merged) else len(merged.vectors)
    return [merged.for_task(t).tensors() for t in range(count)]


@each_variant
@on_any_shapes
@given(shapes=shapes, count=counts, seed=seeds)
def test_zero_task_vectors_give_the_pretrained_model(algorithm, hyper, shapes, count, seed) -> None:
    pretrained, _ = random_models(shapes, 1, seed)
    merged = merge(algorithm, TaskVectors(pretrained, [copy(pretrained)] * tasks(algorithm, count)), **hyper)
    assert all(bits(found) == bits(pretrained) for found in models(merged))


MERGE_ONE = [name for name in pipelines() if tasks(name, 1) == 1 or name in NEUTRAL]


@pytest.mark.parametrize("algorithm", [name for name in MERGE_ONE if not set(parts(name)) & set(NOT_NEUTRAL)])
@on_any_shapes
@given(shapes=shapes, seed=seeds)
def test_one_task_with_neutral_coefficients_gives_its_model(algorithm, shapes, seed) -> None:
    pretrained, finetuned = random_models(shapes, 1, seed)
    merged = merge(algorithm, TaskVectors(pretrained, finetuned), **neutral(algorithm))
    assert_close(models(merged)[0], finetuned[0], rtol=1e-5, atol=1e-5)


def test_iso_c_gives_a_single_model_back_only_if_its_spectrum_is_flat_already() -> None:
    start, rotation, stretch = (
        model([[0.0, 0.0]] * 2),
        model([[0.6, 0.8], [-0.8, 0.6]]),
        model([[3.0, 0.0], [0.0, 1.0]]),
    )
    assert_close(merge("iso_c", TaskVectors(start, [rotation])).tensors(), rotation)
    assert_close(merge("iso_c", TaskVectors(start, [stretch])).tensors(), model([[2.0, 0.0], [0.0, 2.0]]))


def has_a_factor(pipeline: str) -> bool:
    """Whether `scaling` multiplies the merged task vector: not where it is what a search starts from."""
    searches = any(need in ("objective", "loss") for part in parts(pipeline) for need in needs(part))
    return scaling_name(pipeline) in fields(pipeline) and not set(parts(pipeline)) & set(NOT_A_FACTOR) and not searches


SCALED = [one for one in variants() if has_a_factor(one.values[0])]


@pytest.mark.parametrize(("algorithm", "hyper"), SCALED, ids=label)
@on_any_shapes
@given(shapes=shapes, count=counts, seed=seeds)
def test_scaling_multiplies_the_merged_task_vector(algorithm, hyper, shapes, count, seed) -> None:
    vectors = TaskVectors(*random_models(shapes, tasks(algorithm, count), seed))
    one, direct = (merge(algorithm, vectors, **hyper, **{scaling_name(algorithm): value}) for value in (1.0, 0.6))
    assert_close(tensors(one.held().at(0.6)), tensors(direct))


LINEAR = ["simple_average", "weighted_average", "task_arithmetic", "ties", "consensus", "tsv_m", "dare + ties"]


@pytest.mark.parametrize("algorithm", [*LINEAR, "ties + lines"])
@on_any_shapes
@given(shapes=shapes, count=counts, seed=seeds)
def test_the_parts_of_a_merged_task_vector_add_up_to_it(algorithm, shapes, count, seed) -> None:
    merged = merge(algorithm, TaskVectors(*random_models(shapes, tasks(algorithm, count), seed)))
    assert isinstance(merged, Merged) and merged.parts is not None
    for layer in merged.vectors.layers():
        assert_close(merged.parts(layer).sum(0), merged.update(layer), rtol=1e-4, atol=1e-5)


def test_the_parts_of_a_weighted_average_have_its_weights() -> None:
    taus = TaskVectors(model([0.0, 0.0]), [model([4.0, 0.0]), model([0.0, 8.0])])
    merged = merge("weighted_average", taus, weights=[0.75, 0.25])
    assert isinstance(merged, Merged)
    (layer,) = merged.task_vectors().layers()
    assert layer.taus.tolist() == [[3.0, 0.0], [0.0, 2.0]]


@obeying(ORDER_OF_TASKS)
@on_any_shapes
@given(shapes=shapes, count=counts, seed=seeds)
def test_order_of_tasks_does_not_matter(algorithm, hyper, shapes, count, seed) -> None:
    pretrained, finetuned = random_models(shapes, tasks(algorithm, count), seed)
    there, back = (merge(algorithm, TaskVectors(pretrained, order), **hyper) for order in (finetuned, finetuned[::-1]))
    order = range(len(finetuned))
    assert_close(tensors(there, order), tensors(back, order[::-1]), rtol=1e-4, atol=1e-5)


@obeying(ORDER_OF_LAYERS)
@on_any_shapes
@given(shapes=shapes, count=counts, seed=seeds)
def test_order_of_layers_does_not_matter(algorithm, hyper, shapes, count, seed) -> None:
    pretrained, finetuned = random_models(shapes, tasks(algorithm, count), seed)
    reverse = {name: pretrained[name] for name in reversed(pretrained)}
    one, other = (
        models(merge(algorithm, TaskVectors(start, finetuned), **hyper))[0] for start in (pretrained, reverse)
    )
    assert list(other) == list(reversed(one))
    assert_close(one, {name: other[name] for name in one}, rtol=1e-5, atol=1e-6)


@each_variant
@on_any_shapes
@given(shapes=shapes, count=counts, seed=seeds)
def test_inputs_are_never_modified_nor_shared_with_the_result(algorithm, hyper, shapes, count, seed) -> None:
    pretrained, finetuned = random_models(shapes, tasks(algorithm, count), seed)
    for found in (pretrained, *finetuned):
        found["steps"] = torch.tensor(5)
    before = [bits(found) for found in (pretrained, *finetuned)]
    for tensor in tensors(merge(algorithm, TaskVectors(pretrained, finetuned), **hyper)).values():
        tensor.add_(1)
    assert [bits(found) for found in (pretrained, *finetuned)] == before


@each_variant
@on_any_shapes
@given(shapes=shapes, count=counts, seed=seeds)
def test_the_same_generator_state_gives_the_same_bytes(algorithm, hyper, shapes, count, seed) -> None:
    taus = TaskVectors(*random_models(shapes, tasks(algorithm, count), seed))
    first, again = (bits(tensors(merge(algorithm, taus, seed=seed, **hyper))) for _ in range(2))
    assert first == again


@each_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtype_and_shapes_are_those_of_the_pretrained_model(algorithm, hyper, dtype) -> None:
    shapes = {"blocks.0.a": (), "blocks.0.b": (3,), "blocks.1.c": (2, 3), "d": (2, 1, 2)}
    pretrained, finetuned = random_models(shapes, 2, dtype=dtype)
    merged = models(merge(algorithm, TaskVectors(pretrained, finetuned), **hyper))[0]
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in merged.items()}
    assert found == {name: (tensor.dtype, tensor.shape) for name, tensor in pretrained.items()}


@obeying(CONTENT)
@on_any_shapes
@given(shapes=shapes, count=counts, seed=seeds)
def test_float64_models_merge_as_float32_ones_do(algorithm, hyper, shapes, count, seed) -> None:
    random, others = random_models(shapes, tasks(algorithm, count), seed)
    exact = [{name: (64 * x).round() / 64 for name, x in model.items()} for model in (random, *others)]
    wide = [{name: x.double() for name, x in model.items()} for model in exact]
    expected, found = (
        tensors(merge(algorithm, TaskVectors(pretrained, finetuned), **hyper))
        for pretrained, *finetuned in (exact, wide)
    )
    assert_close({name: x.float() for name, x in found.items()}, expected, rtol=1e-4, atol=1e-5)


@each_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32_and_rounded_once(algorithm, hyper, dtype) -> None:
    shapes = {"blocks.0.a": (), "blocks.0.b": (50,), "blocks.1.c": (6, 5)}
    pretrained, finetuned = random_models(shapes, tasks(algorithm, 3), dtype=dtype)
    wide = TaskVectors(
        {k: v.float() for k, v in pretrained.items()}, [{k: v.float() for k, v in m.items()} for m in finetuned]
    )
    expected = {name: tensor.to(dtype) for name, tensor in tensors(merge(algorithm, wide, **hyper)).items()}
    assert bits(tensors(merge(algorithm, TaskVectors(pretrained, finetuned), **hyper))) == bits(expected)


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
    pretrained = {f"blocks.{i}": torch.zeros_like(tensor) for i, tensor in enumerate(SPECIAL[kind])}
    factors = (1.0, -0.5, 1.0)[: tasks(algorithm, 3)]
    finetuned = [{f"blocks.{i}": by * tensor for i, tensor in enumerate(SPECIAL[kind])} for by in factors]
    merged = tensors(merge(algorithm, TaskVectors(pretrained, finetuned), **hyper))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in merged.values())


@pytest.mark.parametrize("algorithm", ["task_arithmetic", "iso_c", "tsv_m"])
def test_a_result_beyond_float32_is_an_error_and_not_infinity(algorithm) -> None:
    taus = TaskVectors(model([[0.0, 0.0]] * 2), [model([[3e38, 3e38], [3e38, -3e38]])] * 2)
    with pytest.raises(ValueError, match="float32"):
        merge(algorithm, taus, scaling=1.0).tensors()


def with_buffers(found: Model) -> Model:
    """Odd-sized first, so that what follows is not aligned by luck."""
    return {"mask": torch.tensor([True, False, True])} | found | {"steps": torch.tensor(5)}


@each_variant
def test_buffers_are_copied_from_the_pretrained_model(algorithm, hyper) -> None:
    pretrained, finetuned = random_models({"blocks.0.a": (3,), "blocks.1.b": (2, 2)}, 2)
    pretrained, finetuned = with_buffers(pretrained), [with_buffers(found) for found in finetuned]
    merged = models(merge(algorithm, TaskVectors(pretrained, finetuned), **hyper))[0]
    assert list(merged) == list(pretrained)
    assert [merged[name].tolist() for name in ("mask", "steps")] == [[True, False, True], 5]
    assert merged["mask"].dtype is torch.bool


@each_variant
def test_streaming_from_disk_to_disk_equals_merging_in_memory(algorithm, hyper, tmp_path: Path) -> None:
    shapes = {"blocks.2.z": (3, 4), "blocks.0.a": (5,), "m": (), "blocks.1.b": (2, 2, 2)}
    pretrained, finetuned = random_models(shapes, tasks(algorithm, 3))
    pretrained, finetuned = with_buffers(pretrained), [with_buffers(found) for found in finetuned]
    paths = [tmp_path / f"{i}.safetensors" for i in range(len(finetuned) + 1)]
    for path, found in zip(paths, (pretrained, *finetuned), strict=True):
        save_tensors(path, found)
    start, *rest = (Checkpoint(path) for path in paths)
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in start.items()}
    merged = merge(algorithm, TaskVectors(start, rest), **hyper).for_task(0)
    save(tmp_path / "merged.safetensors", layout, merged.layers())
    in_memory = models(merge(algorithm, TaskVectors(pretrained, finetuned), **hyper))[0]
    streamed = dict(Checkpoint(tmp_path / "merged.safetensors"))
    assert bits(streamed) == bits({name: in_memory[name] for name in streamed})


@each_variant
def test_the_number_of_threads_does_not_change_a_byte(algorithm, hyper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusion.vectors.RUN", 48)  # several runs a layer
    shapes = {"blocks.0.a": (7, 9), "blocks.1.b": (33,), "c": (2, 3, 4)}
    taus = TaskVectors(*random_models(shapes, tasks(algorithm, 3)))
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(bits(tensors(merge(algorithm, taus, **hyper))))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


@each_variant
def test_a_layer_that_the_objective_ignores_does_not_stop_the_merge(algorithm, hyper) -> None:
    def first_layer(params: dict[str, Tensor]) -> Tensor:
        return (params["blocks.0.a"] - 1).square().sum()

    taus = TaskVectors(*random_models({"blocks.0.a": (3,), "blocks.1.unused": (2, 2)}, 2))
    merged = models(merge(algorithm, taus, objective=first_layer, **hyper))[0]
    assert math.isfinite(merged["blocks.1.unused"].sum().item())


def test_every_method_of_the_configuration_is_a_pipeline_of_these_algorithms() -> None:
    rows = yaml.safe_load((ROWS / "methods.yaml").read_text(encoding="utf-8"))
    named = {part for row in rows.values() for part in parts(row["algorithm"])}
    assert named == set(algorithms())
