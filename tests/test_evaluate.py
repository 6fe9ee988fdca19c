"""Evaluation: what is written for a model agrees with a computation done one example at a time."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import DatasetDict, load_from_disk
from safetensors.torch import load_file
from tiny_stages import TASKS, World
from transformers import AutoModel, AutoTokenizer

from fusion.artifacts import read_json, write_json
from fusion.device import autocast, precision
from fusion.intervals import wilson
from fusion.job import Job, run

EXACT = precision() is torch.float32  # in bfloat16, padding and the size of a batch change the last digits


def evaluated(
    world: World, folder: Path, mode: str, task: str | None, zero_shot: dict[str, list[float]] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and predictions of the model of a task, or of the pre-trained one, of which zero_shot was published."""
    output = {"scores": folder / "scores.parquet", "predictions": folder / "predictions.parquet"}
    settings = {"domain": "text", "method": "individual" if task else "pretrained", "method_class": "reference"}
    settings |= {"corruption": "", "evaluate": {"batch_size": 7, "examples": 20}, "zero_shot": zero_shot or {}}
    job = world.suite_job("fusion.stages.evaluate:evaluate", output, mode, **settings)
    inputs = {name: value for name, value in job.input.items() if name in ("model", "data", "heads")}
    wildcards = {"backbone": "tiny", "suite": "tiny"}
    if task:
        inputs["evaluated"] = str(world.finetuned(mode, task))
        wildcards |= {"mode": mode, "task": task, "seed": "3"}
    run(Job(job.stage, inputs, job.output, job.params, wildcards))
    return pd.read_parquet(output["scores"]), pd.read_parquet(output["predictions"])


def probabilities(world: World, folder: Path | None, task: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Class probabilities (20, C) and labels (20,), written out: mean pooling, cosine, softmax, one text at a time."""
    data = load_from_disk(str(world.data(task)))
    assert isinstance(data, DatasetDict)
    model, tokenizer = AutoModel.from_pretrained(world.model).eval(), AutoTokenizer.from_pretrained(world.model)
    if folder is not None:
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    head = load_file(world.head(task))["weight"]
    rows = []
    for text in data[split]["text"][:20]:
        tokens = tokenizer(text, return_tensors="pt")
        with torch.no_grad(), autocast():
            states = model(input_ids=tokens["input_ids"]).last_hidden_state[0].float()
            feature = states.mean(0) / states.mean(0).norm()
        rows.append((10.0 * head @ feature).double().softmax(0))
    return torch.stack(rows), torch.tensor(data[split]["label"][:20])


@pytest.mark.parametrize("task", [None, "food"])
def test_scores_and_predictions_agree_with_a_direct_computation(world: World, tmp_path: Path, task: str | None) -> None:
    scores, predictions = evaluated(world, tmp_path, "full", task)
    folder = world.finetuned("full", task) if task else None
    for (name, split), examples in predictions.groupby(["task", "split"]):
        p, labels = probabilities(world, folder, name, split)
        entropies = -(p * p.log()).sum(1)
        assert examples["index"].tolist() == list(range(len(labels)))
        assert examples["label"].tolist() == labels.tolist()
        torch.testing.assert_close(
            torch.tensor(examples["entropy"].to_numpy()).double(), entropies, rtol=0, atol=1e-4 if EXACT else 0.05
        )
        margin = p.topk(2).values.diff().abs()[:, 0]
        certain = margin > (1e-4 if EXACT else 0.05)
        assert certain.float().mean() > 0.5
        found = torch.tensor(examples["prediction"].to_numpy())
        assert torch.equal(found[certain], p.argmax(1)[certain])
        rows = scores[(scores["task"] == name) & (scores["split"] == split)].set_index("metric")
        correct = int((found == labels).sum())
        low, high = wilson(correct, len(labels))
        assert rows.loc["accuracy", ["value", "n", "ci_low", "ci_high"]].tolist() == [
            correct / len(labels), len(labels), low, high
        ]  # fmt: skip
        mean, half = examples["entropy"].mean(), 1.96 * examples["entropy"].std(ddof=0) / math.sqrt(len(labels))
        expected = [mean, len(labels), mean - half, mean + half]
        assert rows.loc["entropy", ["value", "n", "ci_low", "ci_high"]].tolist() == pytest.approx(expected, rel=1e-5)


def test_an_individual_model_is_scored_on_test_everywhere_and_on_val_for_its_own_task(
    world: World, tmp_path: Path
) -> None:
    scores, predictions = evaluated(world, tmp_path, "full", "food")
    found = {(task, split) for task, split in zip(scores["task"], scores["split"], strict=True)}
    assert found == {(task, "test") for task in TASKS} | {("food", "val")}
    assert found == {(task, split) for task, split in zip(predictions["task"], predictions["split"], strict=True)}
    assert (scores["trained_on"] == "food").all()
    assert (scores["seed"] == 3).all()
    assert (scores["finetune_seconds"] > 0).all()


def test_the_pretrained_model_is_scored_on_test_alone(world: World, tmp_path: Path) -> None:
    scores, _ = evaluated(world, tmp_path, "full", None)
    assert set(scores["split"]) == {"test"}
    assert set(scores["mode"]) == {""}
    assert scores["finetune_seconds"].isna().all()


def test_each_score_is_traced_to_the_data_and_the_settings_that_made_it(world: World, tmp_path: Path) -> None:
    scores, _ = evaluated(world, tmp_path, "full", "food")
    fingerprints = scores.groupby("task")["data_hash"].unique()
    assert all(len(one) == 1 for one in fingerprints)
    assert len({one[0] for one in fingerprints}) == len(TASKS)
    assert scores["config_hash"].nunique() == 1
    training = world.finetuned("full", "food") / "training.json"
    made, hashes = read_json(training), {"config_hash", "code_version"}
    try:
        for changed in hashes:  # of the fine-tuning: it must show in the row
            write_json(training, made | {changed: "other"})
            again, _ = evaluated(world, tmp_path / changed, "full", "food")
            assert {name for name in hashes if set(again[name]) != set(scores[name])} == {changed}
    finally:
        write_json(training, made)


def test_wilson_intervals_have_their_published_values() -> None:
    # 8 of 10, 0 of 10 and 81 of 263 (Newcombe 1998, table I) at 95 %
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_a_pretrained_model_far_from_any_published_accuracy_is_reported_at_once(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores, _ = evaluated(world, tmp_path, "full", None)
    accuracy = scores[(scores["metric"] == "accuracy")].set_index("task")["value"].to_dict()
    near, far = TASKS[0], TASKS[1]
    published = {near: [accuracy[near] + 0.02, accuracy[near] - 0.02], far: [accuracy[far], accuracy[far] + 0.05]}
    capsys.readouterr()
    evaluated(world, tmp_path, "full", None, published)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    said = f"{100 * accuracy[far]:.1f} % zero-shot on {far}, published {100 * accuracy[far]:.1f}, "
    assert f"{said}{100 * accuracy[far] + 5:.1f} %" in line
