"""Models that others have fine-tuned, merged in place of the run's own."""

from pathlib import Path

import hub
import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_vision import TINY
from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

from fusion.artifacts import read_json
from fusion.job import Job
from fusion.plan import Plan, read
from fusion.stages.pretrained import take_finetuned


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """An image tower with its projection, as a run keeps θ0."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=16, **TINY)
    module = CLIPVisionModelWithProjection(config)
    folder = tmp_path / "pretrained"
    module.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    return folder


def taken(pretrained: Path, out: Path, **source: str) -> Path:
    settings = {
        "backbone": {"kind": "clip", "options": {"logit_scale": 1.0}},
        "source": source,
        "frozen": ["visual_projection.weight"],
    }
    job = Job(
        "", {"model": str(pretrained)}, {"model": str(out)}, {"settings": settings, "code": "c"}, {"task": "pets"}
    )
    take_finetuned(job)
    return out


def test_a_tower_of_the_hub_without_projection_takes_the_place_of_a_fine_tuning(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=16, **TINY))
    theirs.save_pretrained(tmp_path / "theirs")
    hub.model(tmp_path, "somebody/tiny_pets", tmp_path / "theirs")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = taken(pretrained, tmp_path / "out", hub="somebody/tiny_pets")
    found = load_file(folder / "model.safetensors")
    own = CLIPVisionModelWithProjection.from_pretrained(pretrained).state_dict()
    assert found.keys() == own.keys() - {"visual_projection.weight"}
    assert {name: t.shape for name, t in found.items()} == {name: own[name].shape for name in found}
    values = sorted(t.double().sum().item() for t in theirs.state_dict().values())
    assert sorted(t.double().sum().item() for t in found.values()) == pytest.approx(values)
    assert read_json(folder / "training.json")["source"] == {"hub": "somebody/tiny_pets"}


def test_a_model_of_another_shape_is_an_error_that_names_its_weights(pretrained: Path, tmp_path: Path) -> None:
    other = CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **TINY)
    CLIPVisionModel(other).save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"theirs differs from the pre-trained model in the shape of .*position_emb"):
        taken(pretrained, tmp_path / "out", folder=str(tmp_path / "theirs"))
    assert not (tmp_path / "out").exists()


def plan(models: list[str], mode: str = "full", **changes: object) -> Plan:
    """The plan of the tiny configuration with other people's models of these tasks."""
    row = {"backbone": "tiny", "mode": mode, "models": {task: {"hub": f"somebody/{task}"} for task in models}}
    define = {"checkpoints": {"theirs": row}}
    return read(tiny.config(Path("data"), **{"define": define, "checkpoints": ["theirs"], **changes}))


def test_a_row_says_where_each_tasks_model_is() -> None:
    found = plan(list(tiny.TASKS))
    source = found.checkpoint("tiny", "full", "food")
    assert source is not None and source.hub == "somebody/food"
    assert found.checkpoint("tiny", "lora", "food") is None


@pytest.mark.parametrize(
    ("models", "mode", "changes", "error"),
    [
        (["food"], "full", {}, r"no model of \['colours', 'creatures'\]; expected one of each task .*theirs"),
        (list(tiny.TASKS), "lora", {}, "mode 'lora' has adapters; expected a mode of full fine-tuning"),
        (list(tiny.TASKS), "full", {"modes": ["lora"]}, "'theirs' are of tiny, full; expected a backbone and mode"),
        (list(tiny.TASKS), "full", {"checkpoints": ["thei"]}, "unknown checkpoint 'thei'; did you mean 'theirs'"),
    ],
)
def test_checkpoints_that_cannot_be_used_are_errors(
    models: list[str], mode: str, changes: dict[str, object], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        plan(models, mode, **changes)


@pytest.mark.slow
def test_only_what_nobody_fine_tuned_is_fine_tuned(tmp_path: Path) -> None:
    row = {"backbone": "tiny", "mode": "full", "models": {task: {"hub": f"somebody/{task}"} for task in tiny.TASKS}}
    changes = {"define": {"checkpoints": {"theirs": row}}, "checkpoints": ["theirs"], "modes": ["full", "lora"]}
    run = tiny.snakemake(tmp_path, "-n", **changes)
    assert run.returncode == 0, run.output
    assert run.rules["take_finetuned"] == run.rules["finetune_task"] == len(tiny.TASKS)
    assert {wildcards["mode"] for rule, wildcards in run.jobs if rule == "finetune_task"} == {"lora"}


@pytest.mark.slow
def test_checkpoints_are_taken_for_just_the_backbones_and_modes_of_their_rows_whatever_their_names(
    tmp_path: Path,
) -> None:
    places = [("a+b", "full"), ("tiny", "whole")]
    models = {task: {"hub": f"somebody/{task}"} for task in tiny.TASKS}
    define = {
        "checkpoints": {f"of_{mode}": {"backbone": name, "mode": mode, "models": models} for name, mode in places},
        "backbones": {"a+b": tiny.backbone_row(tmp_path)},
        "modes": {"whole": {}},
    }
    changes = {"define": define, "checkpoints": ["of_full", "of_whole"], "modes": ["full", "whole"]} | {
        "finetune": {"lr": 1e-3}
    }
    run = tiny.snakemake(tmp_path, "-n", backbones=["a+b", "tiny"], **changes)
    assert run.returncode == 0, run.output
    taken = {(found["backbone"], found["mode"]) for rule, found in run.jobs if rule == "take_finetuned"}
    assert taken == set(places)
    assert run.rules["take_finetuned"] == run.rules["finetune_task"] == 2 * len(tiny.TASKS)
