"""Real models of transformers and PEFT on disk, and `fusion merge` of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import write_bert
from torch import Tensor, nn
from transformers import AutoModel

from fusion import methods
from fusion.cli import main
from fusion.vectors import TaskVectors

Model = dict[str, Tensor]


def read(folder: Path) -> Model:
    """The state that transformers loads, in the type of the file."""
    return dict(AutoModel.from_pretrained(folder, dtype="auto").state_dict())


def perturbed(model: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def write_models(folder: Path) -> Path:
    """Folders `base`, `a`, `b` and `c` in transformers format, `b` sharded, and `lora`, a PEFT adapter of `base`."""
    write_bert(folder / "base")
    for seed, name in enumerate("abc"):
        model: Any = perturbed(AutoModel.from_pretrained(folder / "base"), seed)
        model.save_pretrained(folder / name, max_shard_size="30KB" if name == "b" else "5GB")
    torch.manual_seed(9)
    adapted: Any = get_peft_model(
        AutoModel.from_pretrained(folder / "base"),
        LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"], init_lora_weights=False),
    )
    adapted.save_pretrained(folder / "lora")
    return folder


def fuse(models: Path, out: Path, method: str = "task_arithmetic", *options: str, finetuned: str = "abc") -> int:
    """The exit code of a merge of `a`, `b` and `c`."""
    each = [str(models / name) for name in finetuned]
    return main(
        ["merge", method, "--pretrained", str(models / "base"), "--finetuned", *each, "--out", str(out), *options]
    )


def expected(models: Path, pipeline: str = "task_arithmetic", finetuned: str = "abc", **values: Any) -> Model:
    """The same merge, in memory, of what transformers loads."""
    taus = TaskVectors(read(models / "base"), [read(models / name) for name in finetuned])
    merged = methods.merge(pipeline, taus, rng=torch.Generator().manual_seed(0), values=values)
    return merged.for_task(0).tensors()


def assert_same(found: Model, wanted: Model, atol: float = 0.0) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype is tensor.dtype and torch.allclose(found[name], tensor, atol=atol, rtol=0), name


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("fusion: error: "), lines
    return lines[0]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
