"""One model on all tasks of a suite: the batches it sees, its steps, its bytes, and its place in the workflow."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_finetune import interrupt, parameters, resume_file
from tiny_stages import TASKS, World
from torch import Generator

from fusion.artifacts import read_json
from fusion.checkpoint import Checkpoint
from fusion.data.tasks import TaskData, shuffled
from fusion.job import Job, run
from fusion.stages.finetune import Task, batches, identity, tasks


def multitask_job(world: World, mode: str, folder: Path, names: list[str] = TASKS, **recipe: Any) -> Job:
    """The job that fine-tunes one model on all the tasks named."""
    job = world.finetune_job(mode, names[0], folder, **recipe)
    inputs = job.input | {
        "data": [str(world.data(task)) for task in names],
        "heads": [str(world.head(task)) for task in names],
    }
    return replace(job, input=inputs, wildcards={"backbone": "tiny", "mode": mode, "suite": "tiny", "seed": "0"})


def counted(*sizes: int) -> list[Task]:
    """Tasks of so many examples each, whose inputs are their own indices."""
    return [Task(range(size), torch.zeros(size, dtype=torch.int64), torch.zeros(2, 4)) for size in sizes]


def test_each_cycle_has_one_batch_of_every_task_and_cycles_differ_in_order() -> None:
    tasks = counted(10, 7, 23)
    found = [t for t, _ in islice(batches(tasks, 4, seed=0), 60)]
    cycles = [tuple(found[i : i + 3]) for i in range(0, 60, 3)]
    assert all(sorted(cycle) == [0, 1, 2] for cycle in cycles)
    assert len(set(cycles)) > 3


def test_a_task_has_the_batches_of_its_individual_model_in_the_same_order() -> None:
    tasks = counted(10, 7, 23)
    found = list(islice(batches(tasks, 4, seed=5), 30))
    for t, task in enumerate(tasks):
        alone = list(islice(batches([task], 4, seed=5), 10))
        assert [indices for one, indices in found if one == t] == [indices for _, indices in alone]


def test_one_task_has_the_batches_that_shuffling_gives() -> None:
    found = [indices for _, indices in islice(batches(counted(11), 4, seed=3), 8)]
    assert found == list(islice(shuffled(11, 4, Generator().manual_seed(3)), 8))


def test_batches_follow_from_the_seed_alone() -> None:
    def drawn(seed: int) -> list[list[int]]:
        tasks = counted(10, 7)
        return [[t, *indices] for t, indices in islice(batches(tasks, 3, seed), 20)]

    one = drawn(0)
    torch.rand(1)  # the global random state has no part in it
    assert one == drawn(0) != drawn(1)


def test_it_takes_the_steps_of_all_individual_models_together(world: World, tmp_path: Path) -> None:
    run(multitask_job(world, "full", tmp_path / "model"))
    facts = read_json(tmp_path / "model" / "training.json")
    assert facts["steps"] == len(TASKS) * tiny.FINETUNE["steps"]


def test_a_suite_of_one_task_gives_the_bytes_of_its_individual_model(world: World, tmp_path: Path) -> None:
    job = multitask_job(world, "full", tmp_path / "model", ["food"])
    run(job)
    assert parameters(job) == (world.finetuned("full", "food") / "model.safetensors").read_bytes()


@pytest.mark.parametrize("mode", ["full", "l_lora_both", "lora_dropout"])
def test_an_interrupted_run_ends_with_the_bytes_of_an_uninterrupted_one(
    world: World, tmp_path: Path, mode: str
) -> None:
    whole, broken = (multitask_job(world, mode, tmp_path / name) for name in ("whole", "broken"))
    run(whole)
    interrupt(world, broken, at=7)
    assert Checkpoint(resume_file(broken)).metadata["step"] == "6"
    run(broken)
    assert parameters(broken) == parameters(whole)
    assert not resume_file(broken).exists()


def test_it_learns_every_task(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    run(multitask_job(world, "full", folder, steps=30))
    backbone, weights = world.backbone(), load_file(folder / "model.safetensors")
    for name in TASKS:
        data = TaskData(world.data(name))
        with torch.no_grad():
            head = Checkpoint(world.head(name))["weight"]
            logits = backbone.logits(weights, backbone.collate(data.inputs("test")), head)
        found, classes = logits.argmax(-1).eq(data.labels("test")).float().mean(), len(tiny.TASKS[name])
        assert found > (1 + 1 / classes) / 2, name


def test_a_resumable_run_is_told_by_the_data_and_head_of_every_task(world: World, tmp_path: Path) -> None:
    job = multitask_job(world, "full", tmp_path / "model")
    others = [
        replace(job, input=job.input | {name: [*job.input[name][:-1], job.input[name][0]]})
        for name in ("data", "heads")
    ]
    assert len({identity(one) for one in (job, *others)}) == 3


def test_tasks_without_their_heads_are_an_error(world: World, tmp_path: Path) -> None:
    job = multitask_job(world, "full", tmp_path / "model")
    with pytest.raises(ValueError, match="shorter"):
        tasks(replace(job, input=job.input | {"heads": job.input["heads"][:-1]}))


@pytest.mark.slow
def test_a_run_has_the_multitask_model_as_a_reference_unless_it_is_not_wanted(tmp_path: Path) -> None:
    changes = {"modes": ["full", "lora"], "seeds": [0, 1], "methods": ["simple_average"]}
    run = tiny.snakemake(tmp_path, "-n", **changes)
    assert run.rules["finetune_multitask"] == run.rules["evaluate_multitask"] == 4, run.output
    assert tiny.snakemake(tmp_path, "-n", "finetune", **changes).rules["finetune_multitask"] == 4
    without = tiny.snakemake(tmp_path, "-n", multitask=False, **changes)
    assert (
        not {"finetune_multitask", "evaluate_multitask"} & set(without.rules) and without.rules["finetune_task"] == 12
    )
