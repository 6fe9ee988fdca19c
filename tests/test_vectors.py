"""Task vectors: exact thresholds, one layer at a time, and errors that name the tensor and both sides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vectors import Model, model, random_models, vectors
from torch import Tensor
from torch.testing import assert_close

from fusion import methods
from fusion.checkpoint import Checkpoint, save_tensors
from fusion.thresholds import LONG, STRIDE, _bracketed, _radix_select, kept, magnitudes_at
from fusion.vectors import Layer, Merged, TaskVectors


def mean(taus: TaskVectors) -> Merged:
    return taus.map(lambda layer: layer.taus.mean(0))


def on_disk(folder: Path, *models: Model) -> list[Checkpoint]:
    """pretrained.safetensors, task1.safetensors, …"""
    paths = [folder / ("pretrained.safetensors" if i == 0 else f"task{i}.safetensors") for i in range(len(models))]
    for path, tensors in zip(paths, models, strict=True):
        save_tensors(path, tensors)
    return [Checkpoint(path) for path in paths]


def test_task_vectors_are_differences_in_float32() -> None:
    start, tuned = model([1.0, 2.0], dtype=torch.bfloat16), model([1.0078125, 0.0], dtype=torch.bfloat16)
    (layer,) = TaskVectors(start, [tuned, start]).layers()
    assert (layer.name, layer.pretrained.dtype, layer.taus.dtype) == ("w", torch.float32, torch.float32)
    assert layer.taus.tolist() == [[0.0078125, -2.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("pretrained", "finetuned", "error"),
    [
        ("a.safetensors", [{}], r"pretrained: got a path, 'a.safetensors', .*Checkpoint\('a.safetensors'\)"),
        ({}, [{}, Path("b")], r"finetuned\[1\]: got a path, 'b', expected named tensors: pass Checkpoint\('b'\)"),
        (torch.nn.Linear(1, 1), [{}], r"pretrained: got the module Linear, .*pass its state_dict\(\)"),
        ({}, [torch.nn.Linear(1, 1)], r"finetuned\[0\]: got the module Linear, .*pass its state_dict\(\)"),
        ({}, {}, r"finetuned: got one dict, expected a list of models: \[A, B\], of a single one \[A\]"),
        ({}, "ab", r"finetuned: got one str, expected a list of models"),
        ({}, torch.nn.ModuleList([torch.nn.Linear(1, 1)]), r"finetuned: got one ModuleList, expected a list of models"),
        ({}, 5, r"finetuned: got int, expected a list of models"),
        ({}, torch.ones(2, 2), r"finetuned: got Tensor, expected a list of models"),
        ({}, iter(()), r"got no fine-tuned model"),
        ({"w": torch.ones(1)}, [{"w": [1.0]}], r"finetuned\[0\]: 'w' is a list, expected a tensor"),
        ({"state_dict": {}}, [{}], r"pretrained: 'state_dict' is a dict, .*pass the state_dict\(\) itself"),
        ({}, [None], r"finetuned\[0\]: got NoneType, expected named tensors"),
    ],
)
def test_what_is_no_model_is_an_error_that_says_what_to_pass(pretrained: Any, finetuned: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        TaskVectors(pretrained, finetuned)


def test_models_may_come_from_a_generator() -> None:
    taus = TaskVectors(model([1.0]), (model([value]) for value in (2.0, 3.0)))  # type: ignore[arg-type]
    assert len(taus) == 2 and next(taus.layers()).taus.tolist() == [[1.0], [2.0]]


def test_deltas_are_task_vectors_without_rounding() -> None:
    start, delta = model([1000.0]), model([1e-6])
    assert next(TaskVectors.of_deltas(start, [delta]).layers()).taus.item() == pytest.approx(1e-6, rel=1e-6)
    assert TaskVectors.of_deltas(start | {"steps": torch.tensor(3)}, [delta | {"steps": torch.tensor(0)}]).count() == 1


def test_parameters_of_a_module_can_be_merged() -> None:
    start, tuned = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    merged = mean(TaskVectors(dict(start.named_parameters()), [dict(tuned.named_parameters())])).tensors()
    assert_close(merged, dict(tuned.state_dict()))
    assert not any(tensor.requires_grad for tensor in merged.values())


class Recorded(Mapping[str, Tensor]):
    """A model that notes which of its tensors are read."""

    def __init__(self, tensors: Model) -> None:
        self.tensors, self.read = tensors, []

    def __getitem__(self, name: str) -> Tensor:
        self.read.append(name)
        return self.tensors[name]

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_layers_are_read_one_at_a_time() -> None:
    pretrained, (tuned,) = random_models({"a": (2,), "b": (2,), "c": (2,)}, 1)
    recorded = Recorded(tuned)
    merged = mean(TaskVectors(pretrained, [recorded])).layers()
    for name in ("a", "b", "c"):
        recorded.read.clear()
        assert next(merged)[0] == name
        assert recorded.read == [name]


@pytest.mark.parametrize(("density", "count", "expected"), [(0.29, 100, 29), (0.2, 4, 0), (1.0, 7, 7), (0.999, 7, 6)])
def test_kept_is_the_floor_of_density_times_count(density: float, count: int, expected: int) -> None:
    assert kept(density, count) == expected


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    sizes=st.lists(st.integers(1, 40) | st.integers(1000, 3000), min_size=1, max_size=3),
    density=st.floats(0.005, 1.0),
    seed=st.integers(0, 999),
    repeated=st.booleans(),
)
def test_magnitude_thresholds_are_those_of_topk(sizes: list[int], density: float, seed: int, repeated: bool) -> None:
    pretrained, finetuned = random_models({str(i): (size,) for i, size in enumerate(sizes)}, 2, seed)
    if repeated:  # many equal magnitudes, and zeros
        finetuned = [{name: pretrained[name] + tensor.round() for name, tensor in one.items()} for one in finetuned]
    taus = TaskVectors(pretrained, finetuned)
    magnitudes = torch.cat([layer.taus.abs() for layer in taus.layers()], dim=1)
    keep = kept(density, sum(sizes))
    expected = magnitudes.topk(keep).values[:, -1] if keep else torch.full((2,), torch.inf)
    assert torch.equal(taus.magnitude_thresholds(density), expected)
    if keep:  # what is done where the sample misleads
        assert torch.equal(_radix_select(taus, keep), expected)


def test_a_sample_that_misleads_does_not_change_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusion.thresholds.STRIDE", 2)
    tau = torch.tensor([1.0, 50.0] * 500) + torch.arange(1000) / 1000  # every second coordinate is small
    taus = TaskVectors({"w": torch.zeros(1000)}, [{"w": tau}])
    assert _bracketed(taus, 100) is None
    assert taus.magnitude_thresholds(0.1).item() == tau.topk(100).values[-1].item()


@pytest.mark.parametrize("places", [[0], [0, 0], [3, LONG - 1], [LONG // 3, LONG // 2, LONG]], ids=str)
@pytest.mark.parametrize("seen", [0.0, 1.0, 1e30])
def test_magnitudes_in_a_row_are_exact_whatever_the_sample_shows(places: list[int], seen: float) -> None:
    rows = np.random.default_rng(0).normal(size=(2, LONG + 1)).astype(np.float32)
    for row in (*rows, *rows.astype(np.float64)):
        row[::STRIDE] *= seen
        assert magnitudes_at(row[None], places).tolist() == [np.sort(abs(row))[places].tolist()]


def test_a_threshold_that_most_coordinates_share_need_not_be_in_the_first_layer() -> None:
    pretrained = {"a": torch.zeros(300), "b": torch.zeros(3000)}  # one step of Adam moves all that it moves as far
    taus = TaskVectors(pretrained, [{"a": torch.zeros(300), "b": torch.full((3000,), -0.5)}])
    assert taus.magnitude_thresholds(0.01).item() == taus.magnitude_thresholds(0.9).item() == 0.5


def test_thresholds_count_beyond_what_float32_can() -> None:
    size = (1 << 24) + 4099  # all magnitudes differ, so one too few would be another threshold
    tau = torch.arange(1, size + 1, dtype=torch.int32).add_(0x20000000).view(torch.float32)
    taus = TaskVectors({"w": torch.zeros(size)}, [{"w": tau}])
    keep = size - 3
    assert taus.magnitude_thresholds(keep / size).item() == tau[size - keep].item()


def test_a_tensor_in_another_memory_format_can_be_merged() -> None:
    pretrained = {"conv": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "w": torch.randn(3, 2).T}
    finetuned = [{name: tensor + 1 for name, tensor in pretrained.items()}]
    for method in (methods.simple_average, methods.tsv_m):
        merged = method(TaskVectors(pretrained, finetuned), rng=torch.Generator()).tensors()
        assert_close(merged["conv"], finetuned[0]["conv"])


def test_a_held_model_reads_no_fine_tuned_one_again() -> None:
    reads = []

    def change(layer: Layer) -> Tensor:
        reads.append(layer.name)
        return layer.taus

    merged = vectors([1.0, 2.0]).transform(change).map(lambda layer: layer.taus.sum(0), scaling=1.0).held()
    assert [merged.at(s).tensors()["w"].tolist() for s in (1.0, 2.0)] == [[1.0, 2.0], [2.0, 4.0]]
    assert reads == ["w"]


@pytest.mark.parametrize(
    ("pipeline", "values", "message"),
    [
        ("ties", {"densty": 1.0}, "ties has no hyper-parameter 'densty'; expected some of density"),
        ("ties", {"ties.density": 1.0}, "no hyper-parameter 'ties.density'"),
        ("dare", {}, "'dare' merges nothing"),
        ("task_arithmetic + dare", {}, "expected first task vectors"),
        ("fisher", {}, "fisher needs 'fishers' in `given`"),
        ("tiez", {}, "unknown algorithm 'tiez'"),
    ],
)
def test_a_pipeline_that_makes_no_sense_is_refused(pipeline: str, values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.merge(pipeline, vectors([1.0]), rng=torch.Generator(), values=values)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-40, 1.0, 3e38])
def test_magnitude_thresholds_are_exact_at_the_ends_of_float32(value: float) -> None:
    limits = vectors([0.0, value, -value], [value, 0.0, 0.0]).magnitude_thresholds(0.67)
    assert torch.equal(limits, torch.tensor([value, 0.0]))


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        ({"a": torch.ones(2)}, r"task1\.safetensors against .*pretrained\.safetensors: missing tensors \['b'\]"),
        ({"a": torch.ones(2), "b": torch.ones(2), "x": torch.ones(2)}, r"task1.*pretrained.*extra tensors \['x'\]"),
        ({"a": torch.ones(2), "b": torch.ones(1, 2)}, r"'b': got shape \(1, 2\) in .*task1.*\(2,\) as in .*pretrained"),
        (
            {"a": torch.ones(2), "b": torch.ones(2).int()},
            r"'b': got no float in .*task1.* a float as in .*pretrained",
        ),
    ],
    ids=["missing", "extra", "shape", "type"],
)
def test_models_that_do_not_fit_are_errors_before_anything_is_read(tuned: Model, message: str, tmp_path: Path) -> None:
    start, other = on_disk(tmp_path, {"a": torch.ones(2), "b": torch.ones(2)}, tuned)
    with pytest.raises(ValueError, match=message):
        TaskVectors(start, [other])


def test_a_float_in_place_of_an_integer_is_an_error_of_models_in_memory_too() -> None:
    with pytest.raises(ValueError, match="'n': got a float in a model in memory, expected no float as in a model"):
        TaskVectors({"n": torch.tensor([True])}, [{"n": torch.tensor([1.0])}])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("culprit", ["pretrained", "task2"])
def test_a_tensor_that_is_not_finite_is_named_with_its_file(bad: float, culprit: str, tmp_path: Path) -> None:
    models = {name: model([1.0, 2.0]) for name in ("pretrained", "task1", "task2")}
    models[culprit]["w"][1] = bad
    start, *tuned = on_disk(tmp_path, *models.values())
    with pytest.raises(ValueError, match=rf"tensor 'w' of .*{culprit}\.safetensors holds NaN or infinity"):
        mean(TaskVectors(start, tuned)).tensors()


def test_a_difference_beyond_float32_is_an_error() -> None:
    with pytest.raises(ValueError, match="the difference of tensor 'w' overflows"):
        mean(TaskVectors(model([-3e38]), [model([3e38])])).tensors()


@pytest.mark.parametrize("names", [("steps", "w"), ("w", "steps")], ids=["before a layer", "after the last layer"])
def test_buffers_that_differ_are_an_error_that_names_both_files(names: tuple[str, str], tmp_path: Path) -> None:
    def tensors(steps: int) -> Model:
        both = {"steps": torch.tensor(steps), "w": torch.ones(2)}
        return {name: both[name] for name in names}

    save_tensors(tmp_path / "task1.safetensors", tensors(4))
    with pytest.raises(ValueError, match=r"'steps' is torch\.int64 and differs between a model in memory and .*task1"):
        mean(TaskVectors(tensors(3), [Checkpoint(tmp_path / "task1.safetensors")])).tensors()


def test_the_number_of_batches_that_a_normalization_has_seen_may_differ_and_is_that_of_the_pretrained_model() -> None:
    seen = [{"bn.num_batches_tracked": torch.tensor(count), "w": torch.ones(2)} for count in (3, 4, 5)]
    assert mean(TaskVectors(seen[0], seen[1:])).tensors()["bn.num_batches_tracked"].item() == 3


def test_weights_of_eight_bits_are_refused_by_name() -> None:
    tuned = {"w": torch.ones(2).to(torch.float8_e4m3fn)}
    with pytest.raises(ValueError, match=r"tensor 'w' of a model in memory is torch\.float8_e4m3fn; expected 16 bits"):
        mean(TaskVectors({"w": torch.ones(2)}, [tuned])).tensors()


@pytest.mark.parametrize(
    ("name", "state", "rng", "message"),
    [
        ("ties", {"w": torch.ones(2)}, None, r"ties: got dict, expected TaskVectors: pass TaskVectors\(P, \[A, B\]\)"),
        ("dare", [{}], None, r"dare: got list, expected TaskVectors"),
        (
            "ties",
            vectors([1.0]).map(lambda layer: layer.taus.sum(0)),
            None,
            r"got Merged, .*: pass its task_vectors\(\)",
        ),
        ("lines", vectors([1.0]), None, r"lines: got TaskVectors, expected Merged: pass what a method that merges"),
        (
            "dare",
            vectors([1.0]),
            0,
            r"dare: got rng 0, expected a generator: pass torch\.Generator\(\)\.manual_seed\(0\)",
        ),
    ],
)
def test_what_is_no_task_vectors_or_generator_is_told_what_to_pass(
    name: str, state: Any, rng: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        methods.load(name)(state, rng=torch.Generator() if rng is None else rng)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("ties", [{}, {}]), r"ties: got list, expected TaskVectors: pass TaskVectors\(P, \[A, B\]\)"),
        ((vectors([1.0]), "ties"), r"merge: got TaskVectors, expected the name of an algorithm, 'ties', and then"),
    ],
)
def test_a_pipeline_of_what_is_no_task_vectors_is_told_what_to_pass(args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.merge(*args, rng=torch.Generator())
    with pytest.raises(ValueError, match=r"ties: got list, expected TaskVectors"):
        methods.load("ties")(taus=[{}], rng=torch.Generator())


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("ties", {"density": True}, "ties: density: got True, expected a number"),
        ("weighted_average", {"weights": [True, 0.0]}, r"weights: got \[True, 0\.0\], expected a number"),
        ("wudi", {"lr": float("inf")}, "wudi: lr: got inf, Input should be a finite number"),
        ("task_arithmetic", {"scaling": float("nan")}, "scaling: got nan, Input should be a finite number"),
    ],
)
def test_a_hyper_parameter_that_is_no_number_is_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        methods.load(name)(vectors([1.0], [2.0]), rng=torch.Generator(), **values)


def test_complex_numbers_are_called_no_floats() -> None:
    base, tuned = model([1.0], dtype=torch.float32), {"w": torch.ones(1, dtype=torch.complex64)}
    with pytest.raises(ValueError, match=r"'w': got no float in a model in memory, expected a float as in"):
        TaskVectors(base, [tuned])
    with pytest.raises(ValueError, match=r"'w' is torch\.complex64 and differs .*; what is no float must agree"):
        mean(TaskVectors({"w": tuned["w"] * 2}, [tuned])).tensors()


def test_a_merge_that_is_not_finite_is_an_error_that_names_the_tensor() -> None:
    taus = vectors([1.0, 2.0])
    with pytest.raises(ValueError, match=r"merged tensor 'w' is not finite in torch\.float32"):
        taus.map(lambda layer: layer.taus.sum(0) * torch.nan).tensors()
    half = TaskVectors(model([0.0], dtype=torch.float16), [model([6e4], dtype=torch.float16)] * 2)
    with pytest.raises(ValueError, match=r"not finite in torch\.float16"):
        half.map(lambda layer: layer.taus.sum(0)).tensors()


@pytest.mark.parametrize("coordinatewise", [True, False])
def test_a_running_variance_that_came_out_negative_is_an_error_however_the_model_is_read(
    coordinatewise: bool, tmp_path: Path
) -> None:
    taus = TaskVectors({"bn.running_var": torch.ones(3)}, [{"bn.running_var": torch.full((3,), 0.25)}])
    merged = taus.map(lambda layer: layer.taus.sum(0), scaling=2.0, coordinatewise=coordinatewise)
    for read in (merged.tensors, lambda: merged.save(tmp_path / "merged.safetensors"), merged.held().tensors):
        with pytest.raises(ValueError, match=r"merged tensor 'bn\.running_var' holds -0\.5, and .* smaller scaling"):
            read()
    assert not list(tmp_path.iterdir())
    assert merged.at(0.5).tensors()["bn.running_var"].tolist() == [0.625] * 3


def test_no_fine_tuned_model_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        TaskVectors(model([1.0]), [])
