"""Fine-tuning: it learns, follows its schedule, and ends with the same bytes however often it is interrupted."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import killed
import pytest
import torch
import waiting
from safetensors.torch import load_file
from tiny_stages import World, changed

from fusion.artifacts import read_json
from fusion.backbones import open_backbone
from fusion.backbones.sentence_encoder import Batch, SentenceEncoder
from fusion.checkpoint import Checkpoint
from fusion.data.tasks import TaskData
from fusion.job import Job, run
from fusion.modes import attach, freeze
from fusion.resumption import keep, restore
from fusion.scoring import batched, predict
from fusion.stages.finetune import identity, schedule, tasks, train

FILES = ("model.safetensors", "adapter_model.safetensors")
RUN = killed.CODE + "import json; from fusion.job import Job, run; run(Job(**json.loads(sys.argv[1])))"


def parameters(job: Job) -> bytes:
    """The bytes of the file that holds the trained parameters."""
    (path,) = [path for name in FILES if (path := Path(job.output["model"]) / name).is_file()]
    return path.read_bytes()


def resume_file(job: Job) -> Path:
    return Path(job.output["model"] + ".resume.safetensors")


class Interrupted(Exception):
    """What stops a fine-tuning half-way."""


class Interrupting(SentenceEncoder):
    """An encoder that raises Interrupted instead of making batch `at`, counted from 0."""

    at = 0

    def collate(self, inputs: Sequence[str]) -> Batch:
        self.at -= 1
        if self.at < 0:
            raise Interrupted
        return super().collate(inputs)


def interrupt(world: World, job: Job, at: int) -> None:
    """Trains as the stage would do for this job, until step `at` of this attempt begins."""
    settings, init = job.params["settings"], job.optional("init")
    backbone = Interrupting(world.model, **world.backbone_row["options"])
    backbone.at = at
    trained = freeze(backbone.module, settings["mode"]["frozen"])
    trained = attach(backbone.module, settings["mode"], init) if init else trained
    recipe, seed = settings["finetune"], settings["seed"]
    with pytest.raises(Interrupted):
        train(backbone, trained, tasks(job), recipe, seed, resume_file(job), "", identity(job))


@pytest.mark.parametrize("workers", [0, 1], ids=["in turn", "made ahead"])
@pytest.mark.parametrize("mode", ["full", "lora", "l_lora", "l_lora_both", "lora_dropout"])
def test_an_interrupted_run_ends_with_the_bytes_of_an_uninterrupted_one(
    world: World, tmp_path: Path, mode: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.ahead.workers", lambda place: workers)  # Interrupting counts in one process
    whole, broken = (world.finetune_job(mode, "creatures", tmp_path / name) for name in ("whole", "broken"))
    run(whole)
    interrupt(world, broken, at=3)
    assert not Path(broken.output["model"]).exists()
    assert Checkpoint(resume_file(broken)).metadata["step"] == "2"
    run(broken)
    assert parameters(broken) == parameters(whole)
    assert not resume_file(broken).exists()
    facts = [read_json(Path(job.output["model"]) / "training.json") for job in (whole, broken)]
    spent = {"seconds": 0, "peak_bytes": 0}
    assert facts[0] | spent == facts[1] | spent


def test_a_run_may_be_interrupted_again_and_again(world: World, tmp_path: Path) -> None:
    whole, broken = (world.finetune_job("lora", "creatures", tmp_path / name) for name in ("whole", "broken"))
    run(whole)
    for at in (0, 3, 1, 2):
        interrupt(world, broken, at)
    assert Checkpoint(resume_file(broken)).metadata["step"] == "4"
    run(broken)
    assert parameters(broken) == parameters(whole)


def test_a_resumed_run_does_not_do_its_steps_again(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = world.finetune_job("full", "creatures", tmp_path / "model")
    interrupt(world, job, at=5)
    capfd.readouterr()
    run(job)
    printed = capfd.readouterr().out
    assert "resuming at step 4" in printed
    assert "step 2 of 6" not in printed


@pytest.mark.parametrize("change", ["learning rate", "code", "seed"])
def test_a_checkpoint_of_other_settings_is_ignored(world: World, tmp_path: Path, change: str) -> None:
    whole, broken = (world.finetune_job("full", "creatures", tmp_path / name) for name in ("whole", "broken"))
    settings = broken.params["settings"]
    other = {
        "learning rate": changed(broken, finetune=settings["finetune"] | {"lr": 0.1}),
        "seed": changed(broken, seed=1),
        "code": Job(broken.stage, broken.input, broken.output, broken.params | {"code": "older"}, broken.wildcards),
    }[change]
    run(whole)
    interrupt(world, other, at=3)
    assert resume_file(broken).is_file()
    run(broken)
    assert parameters(broken) == parameters(whole)
    assert not resume_file(broken).exists()


def kill_half_way(job: Job) -> None:
    """Runs the job in a process of its own that is killed with signal 9 once it has kept a checkpoint."""
    arguments = {name: getattr(job, name) for name in ("stage", "input", "output", "params", "wildcards")}
    process = waiting.run([sys.executable, "-c", RUN, json.dumps(arguments)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.returncode == -9, process.stdout
    assert resume_file(job).is_file()


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(world: World, tmp_path: Path) -> None:
    recipe = {"steps": 60, "checkpoint_every": 3}
    whole, broken = (world.finetune_job("full", "creatures", tmp_path / name, **recipe) for name in ("whole", "broken"))
    kill_half_way(broken)
    assert not Path(broken.output["model"]).exists()
    steps = int(Checkpoint(resume_file(broken)).metadata["step"])
    assert 0 < steps < 60
    run(broken)
    run(whole)
    assert parameters(broken) == parameters(whole)
    assert {path.name for path in tmp_path.iterdir() if "broken" in path.name} == {".broken.made.json", "broken"}


@pytest.mark.parametrize("mode", ["full", "lora", "l_lora"])
def test_the_loss_falls_on_a_task_that_can_be_learned(world: World, tmp_path: Path, mode: str) -> None:
    job = world.finetune_job(mode, "food", tmp_path / "model", steps=60)
    run(job)
    facts = read_json(tmp_path / "model" / "training.json")
    assert facts["last_loss"] < 0.7 * facts["first_loss"]
    assert facts["steps"] == 60


def test_a_seed_gives_the_same_bytes_and_another_seed_others(world: World, tmp_path: Path) -> None:
    jobs = [world.finetune_job("full", "food", tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1))]
    for job in jobs:
        torch.rand(1)  # the global random state is not the stage's
        run(job)
    one, same, other = map(parameters, jobs)
    assert one == same != other


def test_parameters_that_do_not_train_are_not_saved_and_those_that_do_have_changed(world: World) -> None:
    base, found = Checkpoint(world.model), load_file(world.finetuned("full", "food") / "model.safetensors")
    assert set(base) - set(found) == {"embeddings.word_embeddings.weight", "pooler.dense.bias", "pooler.dense.weight"}
    same = {name for name, tensor in found.items() if torch.equal(tensor, base[name])}
    # one segment and few positions occur in the data, but weight decay reaches every row
    assert same == set()


def test_a_run_that_diverges_says_at_which_step_and_keeps_nothing_of_what_came_after(
    world: World, tmp_path: Path
) -> None:
    recipe = {"steps": 60, "warmup_steps": 0, "checkpoint_every": 3}
    job = world.finetune_job("full", "food", tmp_path / "model", lr=1e30, **recipe)
    with pytest.raises(ValueError, match=r"the loss is nan at step 2; expected a smaller finetune\.lr than 1e\+30"):
        run(job)
    assert not resume_file(job).exists()
    assert not Path(job.output["model"]).exists()
    job = world.finetune_job("full", "food", tmp_path / "model", lr=1e30, **recipe | {"checkpoint_every": 100})
    with pytest.raises(ValueError, match="the loss is nan at step 2;"):
        run(job)


@pytest.mark.parametrize("steps", [1, 2])
def test_parameters_that_are_not_finite_are_not_kept(world: World, tmp_path: Path, steps: int) -> None:
    recipe = {"steps": steps, "warmup_steps": 0, "checkpoint_every": 1, "weight_decay": 10.0}
    job = world.finetune_job("full", "food", tmp_path / "model", lr=3.3e37, **recipe)  # eleven times that is infinite
    with pytest.raises(ValueError, match=r"a parameter is not finite after step 1; expected a smaller finetune\.lr"):
        run(job)
    assert not resume_file(job).exists()
    assert not Path(job.output["model"]).exists()


def test_a_learning_rate_warms_up_linearly_and_then_follows_half_a_cosine() -> None:
    found = [schedule(step, steps=6, warmup=2) for step in range(6)]
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_a_learning_rate_without_warm_up_starts_at_its_full_value() -> None:
    found = [schedule(step, steps=4, warmup=0) for step in range(4)]
    assert found == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_a_warm_up_longer_than_the_run_is_cut_off() -> None:
    assert [schedule(step, steps=2, warmup=3) for step in range(2)] == [1 / 4, 2 / 4]


def test_gradients_are_clipped(world: World, tmp_path: Path) -> None:
    recipe = {"steps": 1, "warmup_steps": 0, "weight_decay": 0.0}
    jobs = [world.finetune_job("full", "food", tmp_path / str(c), clip=c, **recipe) for c in (1.0, 1e-12)]
    for job in jobs:
        run(job)
    base = Checkpoint(world.model)
    moves = [
        max((tensor - base[name]).abs().max().item() for name, tensor in load_file(path / FILES[0]).items())
        for path in (Path(job.output["model"]) for job in jobs)
    ]
    # Adam's first step is lr · g / (|g| + 1e-8): a gradient far below 1e-8 hardly moves anything
    assert moves[0] == pytest.approx(3e-3, rel=1e-2)
    assert moves[1] < 1e-5


def test_a_finished_model_says_how_it_was_trained(world: World) -> None:
    facts = read_json(world.finetuned("lora", "food") / "training.json")
    assert facts["trained_parameters"] == 4 * (4 * 32 + 32 * 4)
    assert facts["precision"] in ("float32", "bfloat16")
    assert facts["seconds"] > 0


def test_a_checkpoint_keeps_apart_tensors_whose_names_end_alike(tmp_path: Path) -> None:
    def parameters() -> dict[str, torch.nn.Parameter]:
        values = {"norm.weight": [1.0, 2.0], "blocks.0.norm.weight": [3.0, 4.0]}
        return {name: torch.nn.Parameter(torch.tensor(value)) for name, value in values.items()}

    trained, again, path = parameters(), parameters(), tmp_path / "resume.safetensors"
    optimizer, other = torch.optim.AdamW(trained.values()), torch.optim.AdamW(again.values())
    for step in (1, 2):
        for parameter in trained.values():
            parameter.grad = step * torch.ones_like(parameter)
        optimizer.step()
        keep(path, "run", trained, optimizer, step, 0.0, [0.0] * step)
        assert restore(path, "run", again, other)[0] == step
        for name, parameter in trained.items():
            assert torch.equal(parameter, again[name])
            assert optimizer.state[parameter].keys() == other.state[again[name]].keys()
            assert all(v.equal(other.state[again[name]][key]) for key, v in optimizer.state[parameter].items())


def test_half_a_checkpoint_of_a_killed_run_is_removed_by_the_next(tmp_path: Path) -> None:
    for name in (".resume.safetensors.1234.tmp", ".other.safetensors.1234.tmp"):
        (tmp_path / name).write_text("half")
    assert restore(tmp_path / "resume.safetensors", "run", {}, torch.optim.AdamW([torch.zeros(1)])) == (0, 0.0, [])
    assert [path.name for path in tmp_path.iterdir()] == [".other.safetensors.1234.tmp"]


def test_a_resumable_run_is_told_by_its_data_head_and_start(new_world: World) -> None:
    job = new_world.finetune_job("lora", "food", new_world.folder / "model")
    seen = {identity(job)}
    for name, other in {"data": new_world.data("creatures"), "heads": new_world.head("creatures")}.items():
        seen.add(identity(replace(job, input=job.input | {name: str(other)})))
    seen.add(identity(replace(job, input=job.input | {"init": [str(new_world.init("lora_both"))]})))
    assert len(seen) == 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "l_lora"])
def test_a_compiled_backbone_trains_and_scores_as_the_plain_one(
    world: World, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.device.precision", lambda: torch.float32)
    made, scored = {}, {}
    for compiles in (False, True):
        job = world.finetune_job(mode, "food", tmp_path / str(compiles), steps=6)
        job.params["settings"]["backbone"] = world.backbone_row | {"compile": compiles}
        torch.compiler.reset()
        before = torch._dynamo.utils.counters["frames"]["ok"]
        run(job)
        assert (torch._dynamo.utils.counters["frames"]["ok"] > before) == compiles
        made[compiles] = load_file(next((tmp_path / str(compiles)).glob("*.safetensors")))
        backbone = open_backbone(world.model, job.params["settings"]["backbone"])
        inputs = TaskData(world.data("food")).inputs("test")
        head = Checkpoint(world.head("food"))["weight"]
        weights = {name: tensor + 0.01 for name, tensor in backbone.module.state_dict().items()}
        scored[compiles] = predict(backbone, weights, head, batched(backbone, inputs, 4)).entropies
    for name, tensor in made[False].items():
        if not name.endswith("key.bias"):  # on which no output depends
            torch.testing.assert_close(made[True][name], tensor, rtol=5e-3, atol=5e-5)
    torch.testing.assert_close(scored[True], scored[False], rtol=1e-4, atol=1e-5)
