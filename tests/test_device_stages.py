"""Stages where models run on another device than the CPU: the same results, few bytes that cross, few waits."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pretend_device import THERE, PretendDevice, Seen
from safetensors.torch import load_file
from test_evaluate import evaluated
from test_statistics import statistics_job
from tiny_stages import World
from torch import Tensor
from torch.testing import assert_close

from fusion.backbones import Backbone
from fusion.checkpoint import Checkpoint
from fusion.data.tasks import TaskData
from fusion.job import run
from fusion.scoring import Predictions, batched, predict
from fusion.stages.finetune import tasks, train

pytestmark = pytest.mark.slow  # every operation there goes through Python
TOKEN = 2 * 8  # bytes of a token: its id and its mask
NEAR = {"rtol": 1e-3, "atol": 1e-5}


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 on the CPU, too: the pretended device knows no other."""
    monkeypatch.setattr("fusion.device.precision", lambda: torch.float32)


def moved(backbone: Backbone, names: dict[str, Any]) -> dict[str, Any]:
    """The backbone there, and its parameters of these names. PEFT cannot fill parameters that are there already."""
    backbone.module.to(THERE)
    return {name: parameter for name, parameter in backbone.module.named_parameters() if name in names}


def trained(world: World, backbone: Backbone, parameters: Any, mode: str, steps: int, folder: Path) -> dict[str, Any]:
    """The facts of so many steps that train the parameters."""
    job = world.finetune_job(mode, "food", folder, steps=steps, checkpoint_every=100)
    recipe = job.params["settings"]["finetune"]
    return train(backbone, parameters, tasks(job), recipe, 0, folder / "resume", mode, "")


def assert_near(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Equal to rounding, but where the gradient is nothing else, of which Adam makes whole steps."""
    assert one.keys() == other.keys()
    for name in one:
        if not name.endswith("key.bias"):  # on which no output depends
            assert_close(one[name], other[name], rtol=5e-3, atol=5e-5)


@pytest.mark.parametrize("mode", ["full", "lora", "l_lora", "l_lora_both"])
def test_fine_tuning_steps_are_those_of_the_cpu_and_nobody_waits_for_one(
    world: World, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (backbone, expected), *others = (world.attached(mode) for _ in range(3))
    facts = trained(world, backbone, expected, mode, 4, tmp_path)
    monkeypatch.setenv("FUSION_DEVICE", str(THERE))
    waits, head = [], Checkpoint(world.head("food"))["weight"].nbytes
    for steps, (backbone, parameters) in zip((2, 4), others, strict=True):
        with PretendDevice() as seen:
            parameters = moved(backbone, parameters)
            seen.moved = 0
            again = trained(world, backbone, parameters, mode, steps, tmp_path)
            waits.append(seen.waits)
            assert seen.moved <= head + steps * 8 * (16 * TOKEN + 8 + 4)  # 8 texts of at most 16 tokens, labels, loss
            assert {parameter.device for parameter in parameters.values()} == {THERE}
            found = {name: parameter.detach().cpu() for name, parameter in parameters.items()}
    assert again["first_loss"] == pytest.approx(facts["first_loss"], rel=1e-4)
    assert_near(found, {name: parameter.detach() for name, parameter in expected.items()})
    assert waits == [2, 2]  # for the losses, and for whether all is finite


def test_losses_are_waited_for_once_in_so_many_steps(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.losses.EVERY", 2)
    backbone, parameters = world.attached("l_lora")
    monkeypatch.setenv("FUSION_DEVICE", str(THERE))
    with PretendDevice() as seen:
        trained(world, backbone, moved(backbone, parameters), "l_lora", 5, tmp_path)
    assert seen.waits == 3 + 1


def test_a_model_that_was_fine_tuned_there_is_the_cpus(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [world.finetune_job("full", "food", tmp_path / place, steps=3) for place in ("cpu", "there")]
    run(jobs[0])
    monkeypatch.setenv("FUSION_DEVICE", str(THERE))
    with PretendDevice():
        run(jobs[1])
    one, other = (load_file(Path(job.output["model"]) / "model.safetensors") for job in jobs)
    assert_near(one, other)


def predictions(world: World, backbone: Backbone, head: Tensor, size: int, times: int = 1) -> Predictions:
    inputs = batched(backbone, TaskData(world.data("food")).inputs("test"), size)
    return [predict(backbone, {}, head, inputs) for _ in range(times)][-1]


def test_predictions_are_those_of_the_cpu_and_are_waited_for_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, head = world.backbone(), Checkpoint(world.head("food"))["weight"]
    expected = predictions(world, backbone, head, 12)
    monkeypatch.setenv("FUSION_DEVICE", str(THERE))
    found: list[tuple[Predictions, Seen]] = []
    with PretendDevice() as seen:
        moved(backbone, {})
        on_it = head.to(THERE)
        for size, times in ((12, 1), (4, 1), (12, 3)):
            seen.moved = seen.waits = 0
            found.append((predictions(world, backbone, on_it, size, times), Seen(seen.moved, seen.waits)))
    for one, _ in found:
        assert torch.equal(one.labels, expected.labels)
        assert_close(one.entropies, expected.entropies, **NEAR)
    count = len(expected.labels)
    sizes = [seen.moved for _, seen in found]
    assert sizes[0] <= count * (16 * TOKEN + 8 + 4)
    assert sizes[2] == sizes[0] + 2 * count * (8 + 4)  # batches that were made stay there
    assert [seen.waits for _, seen in found] == [2, 2, 6]


def test_scores_are_those_of_the_cpu(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = evaluated(world, tmp_path / "cpu", "full", "food")
    monkeypatch.setenv("FUSION_DEVICE", str(THERE))
    with PretendDevice():
        found = evaluated(world, tmp_path / "there", "full", "food")
    spent = [name for name in expected[0] if name.startswith("evaluate_")]
    for one, other in zip(found, expected, strict=True):
        kept = [name for name in other if name not in spent]
        pd.testing.assert_frame_equal(one[kept], other[kept], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("statistic", ["fisher", "gram"])
def test_statistics_are_those_of_the_cpu_and_the_models_cross_once(
    world: World, tmp_path: Path, mode: str, statistic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [statistics_job(world, tmp_path / place, statistic, mode) for place in ("cpu", "there")]
    run(jobs[0])
    monkeypatch.setenv("FUSION_DEVICE", str(THERE))
    with PretendDevice() as seen:
        run(jobs[1])
    expected, found = (load_file(tmp_path / place) for place in ("cpu", "there"))
    largest = max(tensor.abs().max().item() for tensor in expected.values())
    assert_close(found, expected, rtol=1e-3, atol=1e-6 * largest)
    parameters = list(world.backbone().module.parameters())
    model = sum(parameter.numel() * 4 for parameter in parameters)
    written = sum(tensor.nbytes for tensor in found.values())
    assert seen.moved <= 3 * model + written + 6 * (16 * TOKEN + 200)  # the backbone, θ0 and the fine-tuned model
    batches = 2 if statistic == "gram" else 0  # which are waited for, and examples are not
    assert seen.waits <= len(found) + 3 * len(parameters) + batches  # is a layer finite? the result
