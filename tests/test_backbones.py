"""Pre-trained models: what is read is whole, and is what the folder and the configuration say."""

import json
import shutil
import zipfile
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from fusion.backbones import KINDS, open_backbone
from fusion.job import Job
from fusion.model_rows import OPTIONS
from fusion.stages.pretrained import prepare_backbone

QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT as its maker saved it."""
    folder = tmp_path_factory.mktemp("original") / "bert"
    tiny.write_bert(folder)
    return folder


@pytest.fixture
def bert(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(original, tmp_path / "bert"))


def read(folder: Path, **options: Any) -> Any:
    return open_backbone(folder, {"kind": "sentence_encoder", "options": tiny.BACKBONE_OPTIONS | options})


def change(folder: Path, without: str = "-", **tensors: torch.Tensor) -> None:
    """Writes the weights anew, with some left out and others replaced."""
    path = folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(without)}
    save_file(kept | tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_kinds_options_in_the_configuration_are_the_arguments_of_its_class(kind: str) -> None:
    arguments = list(signature(KINDS[kind]).parameters)[1:]
    assert list(OPTIONS[kind].model_fields) == arguments


def test_a_missing_weight_is_an_error_that_names_it_and_the_folder(bert: Path) -> None:
    change(bert, without=QUERY)
    with pytest.raises(ValueError, match=rf"{bert}: weights \['{QUERY}'\] are missing"):
        read(bert)


def test_a_weight_of_another_shape_is_an_error_that_names_it(bert: Path) -> None:
    change(bert, **{QUERY: torch.zeros(3, 32)})
    with pytest.raises(ValueError, match=rf"{bert}: weights \['{QUERY}'\] .* not of the shape"):
        read(bert)


def test_a_model_without_pooler_is_whole(bert: Path) -> None:
    change(bert, without="pooler")
    assert read(bert).module is not None


def test_weights_in_half_precision_are_read_as_float32(bert: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    change(bert, **{name: tensor.bfloat16() for name, tensor in weights.items()})
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert {parameter.dtype for parameter in read(bert).module.parameters()} == {torch.float32}


def test_a_folder_with_a_pickle_alone_is_refused(bert: Path) -> None:
    torch.save(load_file(bert / "model.safetensors"), bert / "pytorch_model.bin")
    (bert / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"{bert} has no \*\.safetensors"):
        read(bert)


def test_an_override_of_nothing_in_the_models_config_is_an_error(bert: Path) -> None:
    overrides = {"hidden_dropout_prob": 0.5, "attn_implementation": "eager"}
    assert read(bert, overrides=overrides).module.config.hidden_dropout_prob == 0.5
    with pytest.raises(ValueError, match=r"overrides \['hiden_dropout'\] are not in .*config\.json"):
        read(bert, overrides={**overrides, "hiden_dropout": 0.5})


def prepare(archive: Path, folder: str, target: Path) -> None:
    """Runs the stage on an archive."""
    row = {"kind": "sentence_encoder", "options": tiny.BACKBONE_OPTIONS}
    settings = {"row": row, "source": {"archive": "tiny", "folder": folder}}
    prepare_backbone(Job("", {"archive": str(archive)}, {"model": str(target)}, {"settings": settings}))


def test_a_model_is_read_from_a_folder_of_an_archive(original: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "whole"), "zip", original.parent))
    prepare(archive, "bert", tmp_path / "model")
    for name, tensor in load_file(original / "model.safetensors").items():
        assert torch.equal(tensor, load_file(tmp_path / "model/model.safetensors")[name])
    with pytest.raises(ValueError, match="has no folder 'brt'"):
        prepare(archive, "brt", tmp_path / "none")


def test_an_archive_that_is_cut_short_or_damaged_is_an_error_and_leaves_no_model(
    original: Path, tmp_path: Path
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "whole"), "zip", original.parent))
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as zipped:
        inside = zipped.getinfo("bert/model.safetensors").header_offset + 2000
    for damaged in (content[:-100], content[:inside] + bytes(64) + content[inside + 64 :]):
        archive.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"whole\.zip is cut short or damaged"):
            prepare(archive, "bert", tmp_path / "model")
        assert not (tmp_path / "model").exists()


def test_a_file_that_was_not_copied_whole_is_named(bert: Path) -> None:
    weights = bert / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{weights} is not a whole safetensors file \(.*\); make it again"):
        read(bert)
