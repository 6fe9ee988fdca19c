"""Every fusion algorithm where there is no compiled loop: by its plain formulation, on a device that is not the CPU."""

import re
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, expected, fuse, read
from laws import DRAWS, SEARCHES
from pretend_device import THERE, PretendDevice, Seen
from test_methods_contract import each_variant, obeying, tasks
from test_methods_contract import models as all_models
from tiny_network import NETWORKS, tiny_network
from tiny_vectors import Model, label, merge, random_models, variants
from torch import Generator, Tensor
from torch.testing import assert_close

from fusion.alike import updates
from fusion.device import device
from fusion.held import within_memory
from fusion.methods._mask import logistic
from fusion.methods.dare import drop
from fusion.objectives import TotalEntropy
from fusion.pipelines import needs, parts
from fusion.vectors import Layer, Merged, TaskVectors

SHAPES = {"blocks.0.a": (80, 70), "blocks.0.b": (70,), "blocks.1.a": (80, 70), "blocks.1.d": (2, 3, 4), "e": ()}


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain formulations on the CPU, too."""
    monkeypatch.setattr("fusion.device.IS_PLAIN", True)


def elsewhere(model: Model) -> Model:
    return {name: tensor.to(THERE) for name, tensor in model.items()}


def merged_there(algorithm: str, hyper: dict[str, Any], count: int) -> tuple[list[Model], Seen, int]:
    """The merged models, what was seen while they were merged, and the bytes of the models given."""
    pretrained, finetuned = random_models(SHAPES, tasks(algorithm, count))
    with PretendDevice() as seen:
        start, others = elsewhere(pretrained), [elsewhere(model) for model in finetuned]
        size, seen.moved = seen.moved, 0
        return all_models(merge(algorithm, TaskVectors(start, others), **hyper)), replace(seen), size


@each_variant
def test_what_enters_on_a_device_is_merged_there(algorithm: str, hyper: dict[str, Any], plain: None) -> None:
    expected = all_models(merge(algorithm, TaskVectors(*random_models(SHAPES, tasks(algorithm, 3))), **hyper))
    found, seen, size = merged_there(algorithm, hyper, 3)
    assert {tensor.device for model in found for tensor in model.values()} == {THERE}
    assert seen.moved <= 0.02 * size
    with PretendDevice():
        result = [{name: tensor.cpu() for name, tensor in model.items()} for model in found]
    assert_close(result, expected, rtol=1e-4, atol=1e-5)


@obeying(DRAWS)
def test_what_is_compiled_is_what_its_plain_formulation_says(
    algorithm: str, hyper: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    taus = TaskVectors(*random_models(SHAPES, tasks(algorithm, 3)))
    compiled = all_models(merge(algorithm, taus, **hyper))
    monkeypatch.setattr("fusion.device.IS_PLAIN", True)
    assert_close(all_models(merge(algorithm, taus, **hyper)), compiled, rtol=1e-4, atol=1e-4)


@obeying(SEARCHES)
def test_the_host_waits_as_often_for_many_tasks_and_steps_as_for_few(algorithm: str, hyper: dict[str, Any]) -> None:
    few, many = tasks(algorithm, 2), tasks(algorithm, 4)
    longer = {name: 3 * value for name, value in hyper.items() if name.endswith("steps")}
    waits = []
    for count, values in ((few, hyper), (many, hyper), (few, hyper | longer)):
        found, seen, _ = merged_there(algorithm, values, count)
        waits.append(seen.waits / len(found))
    assert max(waits) <= 20 * len(SHAPES)
    assert max(waits) <= waits[0] + 3  # of the whole merge


ADAPTIVE = [one for one in variants() if any("objective" in needs(part) for part in parts(one.values[0]))]


@pytest.mark.parametrize(("algorithm", "hyper"), ADAPTIVE, ids=label)
def test_task_vectors_without_room_on_the_device_are_streamed_from_the_host(
    algorithm: str,
    hyper: dict[str, Any],
    plain: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = all_models(merge(algorithm, TaskVectors(*random_models(SHAPES, 3)), **hyper))
    monkeypatch.setattr("fusion.held.free_bytes", lambda place: 100_000)
    found, seen, size = merged_there(algorithm, hyper, 3)
    with PretendDevice():
        result = [{name: tensor.cpu() for name, tensor in model.items()} for model in found]
    assert_close(result, expected, rtol=1e-4, atol=1e-5)
    if hyper.get("granularity") != "none":
        assert seen.moved > size
        assert "0.0001 GB free on meta: they stay on the host and are streamed" in caplog.text


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("algorithm", "hyper"), ADAPTIVE, ids=label)
def test_a_network_on_a_device_is_adapted_to_as_on_the_cpu(
    algorithm: str, hyper: dict[str, Any], kind: str, plain: None
) -> None:
    """Forward and backward, float64: small differences must not become other signs."""
    taus, objective = tiny_network(kind)
    batch = next(objective.batches)
    expected = merge(algorithm, taus, objective, **hyper).for_task(0).tensors()
    with PretendDevice() as seen:
        there = TaskVectors(elsewhere(dict(taus.pretrained)), [elsewhere(dict(model)) for model in taus.finetuned])
        batches = repeat(batch.to(THERE))
        seen.moved = 0
        merged = merge(algorithm, there, TotalEntropy(dict, objective.logits, batches), **hyper).for_task(0).tensors()
        assert seen.moved < 300  # numbers of the merge, not of its steps
        assert_close({name: tensor.cpu() for name, tensor in merged.items()}, expected)


def test_what_does_not_fit_is_begun_again_with_task_vectors_on_the_host(
    plain: None, caplog: pytest.LogCaptureFixture
) -> None:
    pretrained, finetuned = random_models({"a": (100, 100), "b": (100, 100), "c": (100, 100)}, 8)
    size = sum(tensor.nbytes for tensor in pretrained.values())
    vectors = TaskVectors(pretrained, finetuned, device=THERE)  # the models themselves stay on the CPU

    def merged() -> Model:
        found = merge("adamerging", vectors, steps=2)
        assert isinstance(found, Merged)
        return found.tensors()

    expected = merge("adamerging", TaskVectors(pretrained, finetuned), steps=2).for_task(0).tensors()
    with PretendDevice() as seen:
        merged()
        resident = seen.peak
    assert resident > 8 * size
    with PretendDevice(capacity=8 * size) as seen:
        found = {name: tensor.cpu() for name, tensor in within_memory(merged).items()}
    assert_close(found, expected)
    assert "Tried to allocate 1320000 bytes" not in caplog.text and "Again from the start" in caplog.text
    with PretendDevice(capacity=2 * size), pytest.raises(torch.OutOfMemoryError):
        within_memory(merged)


def test_draws_on_a_device_are_of_their_seed_alone_and_keep_what_they_say() -> None:
    (taus,) = (torch.randn(3, 40_000, generator=Generator().manual_seed(1)),)
    layer = Layer("w", torch.zeros(40_000), taus)
    with PretendDevice():
        there = Layer("w", layer.pretrained.to(THERE), taus.to(THERE))
        one, again, other = (drop(seed, 0.25, there).cpu() for seed in (3, 3, 4))
        swapped = drop(3, 0.25, there._replace(taus=there.taus.flip(0))).cpu()
    assert torch.equal(one, again) and not torch.equal(one, other) and torch.equal(one, swapped.flip(0))
    kept = one != 0
    assert torch.equal(one[kept], taus[kept] / 0.25)
    assert_close(kept.double().mean(1), torch.full((3,), 0.25).double(), rtol=0, atol=0.01)  # four and a half σ
    assert abs((kept[0] & kept[1]).double().mean().item() - 0.0625) < 0.006  # tasks draw independently


def test_noise_on_a_device_is_the_log_odds_of_a_uniform_number() -> None:
    with PretendDevice():
        u = logistic(torch.empty(20_001, device=THERE), 3, 0).cpu().sigmoid().double().sort().values
    assert (u - torch.linspace(0, 1, 20_001).double()).abs().max() < 0.015  # Kolmogorov-Smirnov, p about 2e-4


@pytest.mark.parametrize("density", [0.001, 0.3, 0.999, 1.0])
def test_thresholds_on_a_device_are_exact(density: float) -> None:
    pretrained, finetuned = random_models({"a": (50, 41), "b": (13,), "c": (0, 3)}, 3)
    finetuned[2] = {name: tensor.round() for name, tensor in finetuned[2].items()}  # many of one magnitude
    expected = TaskVectors(pretrained, finetuned).magnitude_thresholds(density)
    with PretendDevice() as seen:
        found = TaskVectors(pretrained, finetuned, device=THERE).magnitude_thresholds(density)
        assert found.device == THERE and seen.waits <= 6  # whether each of three layers is finite, twice
        assert torch.equal(found.cpu(), expected)


def test_matrices_of_one_shape_are_updated_together_as_far_as_memory_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, ...]] = []

    def update(layer: Layer) -> Tensor:
        given.append(tuple(layer.taus.shape))
        assert layer.is_matrix == (len(layer.taus.shape) > 2)
        return layer.taus.sum(0)

    shapes = {"0.w": (3, 2), "0.b": (3,), "1.w": (3, 2), "1.v": (2, 3), "2.w": (3, 2)}
    taus = TaskVectors(*random_models(shapes, 2))
    for most, wanted in (
        (1 << 30, [(2, 3, 3, 2), (2, 3), (2, 2, 3)]),
        (100, [(2, 2, 3, 2), (2, 3), (2, 2, 3), (2, 3, 2)]),
    ):
        monkeypatch.setattr("fusion.alike.AT_ONCE", most)
        found = {layer.name: one for layer, one in updates(taus, update)}
        assert given == wanted and list(found) == list(shapes)
        assert_close(found, {layer.name: layer.taus.sum(0) for layer in taus.layers()})
        given.clear()


def test_files_are_merged_on_the_device_that_is_there(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FUSION_DEVICE", "meta")  # in place of cuda, for --device auto
    with PretendDevice() as seen:
        assert fuse(models, tmp_path / "there", "ties") == 0
        assert seen.moved > 4 * (models / "base/model.safetensors").stat().st_size
    assert_same(read(tmp_path / "there"), expected(models, "ties"), atol=1e-6)
    assert "| device | meta |" in (tmp_path / "there/README.md").read_text()
    assert "merging on meta; --device cpu" in capsys.readouterr().err
    assert fuse(models, tmp_path / "here", "ties", "--device", "cpu") == 0
    assert "| device | cpu |" in (tmp_path / "here/README.md").read_text()
    assert "merging on" not in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there_is_an_error(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuse(models, tmp_path / "out", "ties", "--device", "cuda") == 1
    assert "sees no GPU" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
@pytest.mark.parametrize(
    ("named", "said"), [("cuda", "sees no GPU"), ("cuda:1", "sees no GPU"), ("gpu", "FUSION_DEVICE: got 'gpu'")]
)
def test_a_device_of_the_environment_that_is_not_there_is_an_error_in_words(
    named: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_DEVICE", named)
    with pytest.raises(ValueError, match=said):
        device()


def test_a_device_without_memory_is_an_error_that_says_what_to_do(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSION_DEVICE", "meta")
    with PretendDevice(capacity=1000):
        assert fuse(models, tmp_path / "out", "ties") == 1
    said = capsys.readouterr().err
    assert re.search(
        r"Tried to allocate \d+ bytes, \d+ are free; one tensor of all models must fit; merge with --dev", said
    )
    assert not (tmp_path / "out").exists()
