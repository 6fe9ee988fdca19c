"""Every fusion algorithm where there is no compiled loop: by its plain formulation, on a device that is not the CPU."""

from typing import Any

import pytest
from laws import CONTENT, SEARCHES
from pretend_device import THERE, PretendDevice, Seen
from test_methods_contract import each_variant, models, obeying, tasks
from tiny_vectors import Model, label, merge, random_models, variants
from torch.testing import assert_close

from fusion.pipelines import needs, parts
from fusion.vectors import TaskVectors

SHAPES = {"blocks.0.a": (80, 70), "blocks.0.b": (70,), "blocks.1.c": (70, 90), "blocks.1.d": (2, 3, 4), "e": ()}
DRAWS = CONTENT | {"concrete": "the noise of its masks"}  # every kind of device has its own


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
        return models(merge(algorithm, TaskVectors(start, others), **hyper)), Seen(seen.moved, seen.waits), size


@each_variant
def test_what_enters_on_a_device_is_merged_there(algorithm: str, hyper: dict[str, Any], plain: None) -> None:
    expected = models(merge(algorithm, TaskVectors(*random_models(SHAPES, tasks(algorithm, 3))), **hyper))
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
    compiled = models(merge(algorithm, taus, **hyper))
    monkeypatch.setattr("fusion.device.IS_PLAIN", True)
    assert_close(models(merge(algorithm, taus, **hyper)), compiled, rtol=1e-4, atol=1e-4)


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
    expected = models(merge(algorithm, TaskVectors(*random_models(SHAPES, 3)), **hyper))
    monkeypatch.setattr("fusion.held.free_bytes", lambda place: 100_000)
    found, seen, size = merged_there(algorithm, hyper, 3)
    with PretendDevice():
        result = [{name: tensor.cpu() for name, tensor in model.items()} for model in found]
    assert_close(result, expected, rtol=1e-4, atol=1e-5)
    if hyper.get("granularity") != "none":
        assert seen.moved > size
        assert "0.0 GB free on meta: task vectors stay on the host and are streamed" in caplog.text
