"""`fusion merge --heads keep`: models whose heads differ, or whose names have a prefix, merged without them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import error, names, perturbed
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertModel

from fusion.checkpoint import Checkpoint
from fusion.cli import main

Text = pytest.CaptureFixture[str]


def merge(folder: Path, *options: str, base: str = "P", finetuned: str = "AB", method: str = "simple_average") -> int:
    each = [str(next(folder.glob(f"{name}*"))) for name in finetuned]
    start = str(next(folder.glob(f"{base}*")))
    command = ["merge", method, "--pretrained", start, "--finetuned", *each, "--quiet", "--out", str(folder / "out")]
    return main([*command, *options])


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`P`, a BERT without a head, and `A` and `B`, classifiers of 3 and of 5 classes made of it."""
    folder = tmp_path_factory.mktemp("classifiers")
    torch.manual_seed(0)
    sizes: Any = dict(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    BertModel(BertConfig(**sizes)).save_pretrained(folder / "P")
    for seed, (name, classes) in enumerate({"A": 3, "B": 5}.items()):
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder / "P", num_labels=classes)
        perturbed(model, seed).save_pretrained(folder / name)  # type: ignore[operator]
    return folder


def test_classifiers_of_different_classes_merge_into_a_body_and_keep_their_heads(
    classifiers: Path, tmp_path: Path, capsys: Text
) -> None:
    for name in "PAB":
        (tmp_path / name).symlink_to(classifiers / name)
    capsys.readouterr()
    assert merge(tmp_path, "--heads", "keep") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "classifier." in line]
    assert [f"{tmp_path / 'out/heads'}/{file}" in line for line, file in zip(lines, ("0_A", "1_B"), strict=True)]
    assert all(line.startswith("left out: 'classifier.bias', 'classifier.weight' of ") for line in lines)
    assert "in `heads/`, by its own names" in (tmp_path / "out/README.md").read_text()

    merged: Any = AutoModel.from_pretrained(tmp_path / "out")
    models: Any = [AutoModelForSequenceClassification.from_pretrained(tmp_path / name) for name in "AB"]
    for name, tensor in merged.state_dict().items():
        mean = sum(model.bert.state_dict()[name] for model in models) / 2
        assert torch.allclose(tensor, mean, atol=1e-6), name
    for model, file in zip(models, ("0_A", "1_B"), strict=True):
        head = load_file(tmp_path / f"out/heads/{file}.safetensors")
        assert head.keys() == {"classifier.weight", "classifier.bias"}
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in head.items())
        model.base_model.load_state_dict(dict(Checkpoint(tmp_path / "out")))  # as README has it


def test_without_the_option_the_error_names_it(classifiers: Path, tmp_path: Path, capsys: Text) -> None:
    for name in "PAB":
        (tmp_path / name).symlink_to(classifiers / name)
    capsys.readouterr()
    assert merge(tmp_path) == 1
    message, count = error(capsys), len(Checkpoint(classifiers / "P"))
    assert f"--heads keep merges the {count} of the {count} tensors of " in message and "extra tensors" in message
    assert names(tmp_path) == {"P", "A", "B"}


BODY = {"w.a": torch.ones(4, 4), "w.b": torch.ones(4)}


@pytest.mark.parametrize(("ours", "theirs"), [("", "vit."), ("bert.", ""), ("", "_orig_mod.model."), ("m.", "m.")])
def test_a_prefix_is_recognised_on_either_side(ours: str, theirs: str, tmp_path: Path) -> None:
    save_file({ours + name: tensor for name, tensor in BODY.items()}, tmp_path / "P.safetensors")
    tuned = {theirs + name: 2 * tensor for name, tensor in BODY.items()}
    save_file(tuned | {"head.w": torch.ones(2, 4)}, tmp_path / "A.safetensors")
    save_file(tuned | {"head.w": torch.ones(3, 4)}, tmp_path / "B.safetensors")
    assert merge(tmp_path, "--heads", "keep") == 0
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == {ours + name for name in BODY} and all((tensor == 2).all() for tensor in found.values())
    assert load_file(tmp_path / "out/heads/1_B.safetensors")["head.w"].shape == (3, 4)


def test_a_head_that_only_the_pretrained_model_has_or_has_in_another_size_is_left_out_aloud(
    tmp_path: Path, capsys: Text
) -> None:
    for name, classes in {"P": 7, "A": 2, "B": 3}.items():
        save_file(BODY | {"head.w": torch.ones(classes, 1)}, tmp_path / f"{name}.safetensors")
    assert merge(tmp_path, "--heads", "keep", method="emr") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"left out: 'head.w' of {tmp_path / 'P.safetensors'}, which not all models have"
    assert names(tmp_path / "out") == {"0_A", "1_B", "heads", "README.md"}
    assert load_file(tmp_path / "out/1_B/model.safetensors").keys() == BODY.keys()


def test_models_of_another_kind_and_other_vocabularies_have_no_body_to_merge(tmp_path: Path, capsys: Text) -> None:
    table = "embed_tokens.weight"
    save_file(BODY | {table: torch.ones(5, 1)}, tmp_path / "P.safetensors")
    save_file(BODY | {table: torch.ones(6, 1)}, tmp_path / "A.safetensors")
    save_file({"w.b": torch.ones(4), "x": torch.ones(40)}, tmp_path / "B.safetensors")
    for options in ((), ("--heads", "keep")):
        assert merge(tmp_path, *options, finetuned="A") == 1
        message = error(capsys)
        assert f"tensor '{table}': got shape (6, 1)" in message and "--heads" not in message
    assert merge(tmp_path, finetuned="B") == 1 and "--heads" not in error(capsys)
    assert merge(tmp_path, "--heads", "keep", finetuned="B") == 1
    assert "1 of the 3 tensors of" in error(capsys)


def test_one_file_has_no_room_for_heads(tmp_path: Path, capsys: Text) -> None:
    save_file(BODY, tmp_path / "P.safetensors")
    assert merge(tmp_path, "--heads", "keep", "--out", str(tmp_path / "o.safetensors"), finetuned="P") == 2
    assert "--heads keep writes more than one file; expected --out to be a folder" in error(capsys)
