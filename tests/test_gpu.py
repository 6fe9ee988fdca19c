"""Every fusion algorithm, adaptation and fine-tuning on a real GPU: `make gpu`. Skipped where PyTorch sees none."""

from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import DRAWS
from test_methods_contract import bits, each_variant, obeying, tasks
from test_methods_contract import models as all_models
from tiny_network import tiny_network
from tiny_stages import World
from tiny_vectors import Model, label, merge, random_models
from torch.testing import assert_close

from fusion.job import run
from fusion.objectives import TotalEntropy
from fusion.vectors import TaskVectors

NO_GPU = f"PyTorch {torch.__version__} sees no GPU: these tests need one (`make gpu`)"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)]

SHAPES = {"blocks.0.a": (80, 70), "blocks.0.b": (70,), "blocks.1.a": (80, 70), "blocks.1.d": (2, 3, 4), "e": ()}


def there(model: Model) -> Model:
    return {name: tensor.to("cuda") for name, tensor in model.items()}


def here(model: Model) -> Model:
    return {name: tensor.cpu() for name, tensor in model.items()}


def merged_there(algorithm: str, hyper: dict[str, Any]) -> list[Model]:
    pretrained, finetuned = random_models(SHAPES, tasks(algorithm, 3))
    return all_models(merge(algorithm, TaskVectors(there(pretrained), [there(one) for one in finetuned]), **hyper))


@obeying(DRAWS)
def test_what_enters_on_a_gpu_is_merged_there_as_by_the_plain_formulation_on_the_cpu(
    algorithm: str, hyper: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.device.IS_PLAIN", True)
    expected = all_models(merge(algorithm, TaskVectors(*random_models(SHAPES, tasks(algorithm, 3))), **hyper))
    found = merged_there(algorithm, hyper)
    assert {tensor.device.type for model in found for tensor in model.values()} == {"cuda"}
    assert_close([here(model) for model in found], expected, rtol=1e-3, atol=1e-4)


@each_variant
def test_the_same_seed_gives_the_same_bytes_on_a_gpu(algorithm: str, hyper: dict[str, Any]) -> None:
    first, again = ([bits(here(model)) for model in merged_there(algorithm, hyper)] for _ in range(2))
    assert first == again


ADAPTIVE = [
    ("adamerging", {"steps": 10, "lr": 0.05}),
    ("concrete", {"steps": 3, "adapt_steps": 10, "adapt_lr": 0.05}),
    ("concrete", {"steps": 3, "adapt_steps": 10, "adapt_lr": 0.05, "meta_gradient": "second_order"}),
]


@pytest.mark.parametrize(("algorithm", "hyper"), ADAPTIVE, ids=label)
def test_a_few_adaptive_steps_lower_the_entropy_of_a_network_on_a_gpu(algorithm: str, hyper: dict[str, Any]) -> None:
    merged = merge(algorithm, *network_there(), **hyper).for_task(0)
    losses = merged.diagnostics["entropy"]
    assert len(losses) == 10 and losses[-1] < losses[0]
    assert {tensor.device.type for tensor in merged.tensors().values()} == {"cuda"}


def network_there() -> tuple[TaskVectors, TotalEntropy]:
    """The tiny network, its models and its batches on the GPU."""
    taus, objective = tiny_network("attention", torch.float32)
    batches = repeat(next(objective.batches).to("cuda"))
    vectors = TaskVectors(there(dict(taus.pretrained)), [there(dict(model)) for model in taus.finetuned])
    return vectors, TotalEntropy(dict, objective.logits, batches)


@pytest.mark.parametrize("mode", ["full", "lora", "l_lora"])
def test_a_step_of_fine_tuning_runs_on_a_gpu(mode: str, world: World, tmp_path: Path) -> None:
    run(world.finetune_job(mode, "creatures", tmp_path / "model", steps=1))
    assert list((tmp_path / "model").glob("*.safetensors"))
