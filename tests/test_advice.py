"""What errors advise is done as they say it, and then the merge succeeds: one row an advice.

How to untie an embedding is followed in test_merge_folders.py.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
from checkpoints import Model, assert_same, error, perturbed
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from waiting import BACKSTOP

from fusion.adapter import CONFIG, WEIGHTS, Adapter
from fusion.architecture import UNMERGEABLE
from fusion.artifacts import read_json, write_json
from fusion.checkpoint import Checkpoint
from fusion.cli import main
from fusion.sharded import save_folder
from fusion.vectors import TaskVectors

pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = torch.arange(6)[None]


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `base`, `a` and `b` of LlamaForCausalLM, and `lora`, an adapter of `base`."""
    folder = tmp_path_factory.mktemp("llamas")
    sizes: dict[str, Any] = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).save_pretrained(folder / "base")
    for seed, name in enumerate("ab", 1):
        model: Any = perturbed(LlamaForCausalLM.from_pretrained(folder / "base"), seed)
        model.save_pretrained(folder / name)
    adapt(folder, "lora", peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    return folder


@pytest.fixture
def here(llamas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of those folders, which is the working directory."""
    shutil.copytree(llamas, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def adapt(folder: Path, name: str, config: Any, adapter_name: str = "default") -> torch.Tensor:
    """The logits of `base` with a random adapter, which is saved as `name`."""
    torch.manual_seed(3)
    model: Any = get_peft_model(LlamaForCausalLM.from_pretrained(folder / "base"), config, adapter_name)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(str(folder / name))
    return model.eval()(WORDS).logits.detach() if config.peft_type not in UNMERGEABLE else torch.empty(0)


def merge(*finetuned: object, method: str = "simple_average", p: object = "base", out: str = "out") -> list[str]:
    return ["merge", method, "--pretrained", str(p), "--finetuned", *map(str, finetuned), "--out", out, "--quiet"]


def recipe(message: str, **names: Path) -> str:
    """The Python at the end of an error, with the names that it leaves open filled in."""
    code = re.search(r": ((?:from|import) \w.*)$", message)
    assert code, message
    found = code[1]
    for name, path in names.items():
        found = re.sub(rf"\b{name}\b", lambda _, path=path: repr(str(path)), found)
    return found


def average(*models: Model) -> Model:
    return {name: torch.stack([model[name].double() for model in models]).mean(0).float() for name in models[0]}


def pickle(folder: Path, files: int = 1) -> Model:
    """The tensors of a model folder, which now are in `pytorch_model.bin` or several."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({"lr": 1}, folder / "optimizer.pt")
    shards = [{n: t for k, (n, t) in enumerate(tensors.items()) if k % files == i} for i in range(files)]
    names = [f"pytorch_model-{i + 1:05}-of-{files:05}.bin" if files > 1 else "pytorch_model.bin" for i in range(files)]
    for name, shard in zip(names, shards, strict=True):
        torch.save(shard, folder / name)
    if files > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("known", [True, False], ids=["a known class", "no known class"])
@pytest.mark.parametrize("given", ["a", "a/{}"], ids=["folder", "file"])
def test_pickled_weights_become_safetensors_with_every_tensor_and_name(
    given: str, known: bool, files: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = average(pickle(here / "a", files), load_file(here / "b/model.safetensors"))
    if not known:
        write_json(here / "a/config.json", read_json(here / "a/config.json") | {"architectures": ["LlamaOfTomorrow"]})
    given = given.format("pytorch_model.bin" if files == 1 else "pytorch_model.bin.index.json")
    capsys.readouterr()
    assert main(merge(given, "b")) == 1
    message = error(capsys)
    assert "can run code" in message and ("from_pretrained" in message) == known
    code = recipe(message, NEW=here / "new")
    if files == 1 and given == "a":
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=BACKSTOP)
        assert done.returncode == 0, done.stderr
    else:
        exec(code, {})
    assert main([*merge("new" if known else "a", "b"), "--strict"]) == 0
    assert_same(load_file(here / "out/model.safetensors"), wanted, atol=1e-7)


def test_shared_and_strided_pickled_tensors_are_kept(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": one, "b": one, "c": one.T}, here / "some.pt")
    capsys.readouterr()
    assert main(["show", "some.pt"]) == 1
    message = error(capsys)
    exec(recipe(message), {})
    assert "give some.safetensors" in message
    assert_same(dict(Checkpoint(here / "some.safetensors")), {"a": one, "b": one, "c": one.T})


MERGEABLE = {
    "DoRA": peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "v_proj"]),
    "DoRA with a task": peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "PiSSA": peft.LoraConfig(r=2, init_lora_weights="pissa", target_modules=["q_proj"]),
    "OLoRA": peft.LoraConfig(r=2, init_lora_weights="olora", target_modules=["q_proj"]),
    "trained words": peft.LoraConfig(r=2, trainable_token_indices=[1, 2], target_modules=["q_proj"]),
    "IA3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LoHa": peft.LoHaConfig(r=2, target_modules=["q_proj"]),
    "LoKr": peft.LoKrConfig(r=2, target_modules=["q_proj"]),
    "AdaLoRA": peft.AdaLoraConfig(init_r=2, target_r=2, total_step=10, target_modules=["q_proj"]),
    "OFT": peft.OFTConfig(oft_block_size=4, target_modules=["q_proj"]),
    "VeRA": peft.VeraConfig(r=2, target_modules=["q_proj"]),
    "norms": peft.LNTuningConfig(target_modules=["input_layernorm"]),
}


@pytest.mark.parametrize("kind", MERGEABLE)
def test_an_adapter_that_is_more_than_a_lora_is_merged_by_peft_as_the_error_says(
    kind: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = adapt(here, "adapter", MERGEABLE[kind])
    capsys.readouterr()
    assert main(merge("adapter")) == 1
    message = error(capsys)
    assert "merge it with PEFT first" in message
    exec(recipe(message, P=here / "base", NEW=here / "new"), {})
    assert main([*merge("new"), "--strict"]) == 0
    merged: Any = LlamaForCausalLM.from_pretrained(here / "out").eval()
    assert torch.allclose(merged(WORDS).logits, wanted, atol=1e-5)
    plain: Any = LlamaForCausalLM.from_pretrained(here / "base").eval()
    assert not torch.allclose(plain(WORDS).logits, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(UNMERGEABLE))
def test_an_adapter_that_no_model_can_be_made_of_is_said_to_be_one(
    kind: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"peft_type": kind}
    write_json(here / "lora" / CONFIG, config)
    assert main(merge("lora", "a")) == 1
    message = error(capsys)
    assert f"got peft_type {kind!r}" in message and "leave it out" in message and "merge it with PEFT" not in message
    assert main(merge("a")) == 0


def test_prompts_that_peft_saved_cannot_be_merged_by_peft_either(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapt(here, "prompt", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    loaded: Any = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(here / "base"), str(here / "prompt"))
    with pytest.raises(AttributeError):
        loaded.merge_and_unload()
    capsys.readouterr()
    assert main(merge("prompt")) == 1 and "leave it out" in error(capsys)


class Advice(NamedTuple):
    """One advice: what makes the failing input and its command, what the error says, and the command that follows."""

    fail: Callable[[Path], list[str]]
    says: str  # a regular expression
    follow: Callable[[Path, re.Match[str]], list[str]] | None  # None: it needs a network, and is not followed here


def _bin_adapter(here: Path) -> list[str]:
    torch.save(load_file(here / "lora" / WEIGHTS), here / "lora/adapter_model.bin")
    (here / "lora" / WEIGHTS).unlink()
    return merge("lora", "a")


def _executed(command: list[str]) -> Callable[[Path, re.Match[str]], list[str]]:
    def follow(here: Path, match: re.Match[str]) -> list[str]:
        exec(recipe(match.string), {})
        return command

    return follow


def _named_adapter(here: Path) -> list[str]:
    adapt(here, "trained", peft.LoraConfig(r=2, target_modules=["q_proj"]), "food")
    return merge("trained", "a")


def _checkpoint(here: Path) -> list[str]:
    (here / "a").rename(here / "checkpoint-5")
    (here / "a").mkdir()
    (here / "checkpoint-5").rename(here / "a/checkpoint-5")
    return merge("a", "b")


def _two_forms(here: Path) -> list[str]:
    tensors = load_file(here / "a/model.safetensors")
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    save_folder(here / "a", layout, iter(tensors.items()), 500)
    save_file(tensors, here / "a/model.safetensors")
    return merge("a", "b")


def _model_and_adapter(here: Path) -> list[str]:
    shutil.copytree(here / "lora", here / "a", dirs_exist_ok=True)
    return merge("a", "b")


def _moved(here: Path, match: re.Match[str]) -> list[str]:
    (here / "apart").mkdir()
    for name in match.groups():
        (here / "a" / name).rename(here / "apart" / name)
    return merge("a", "b", "apart")


def _lacking(here: Path) -> list[str]:
    write_json(here / "lora" / CONFIG, read_json(here / "lora" / CONFIG) | {"target_modules": ["q_proj", "o_proj"]})
    return merge("lora")


def _named_only(here: Path, match: re.Match[str]) -> list[str]:
    write_json(here / "lora" / CONFIG, read_json(here / "lora" / CONFIG) | {match[1]: ["q_proj", "v_proj"]})
    return merge("lora")


def _other_head(here: Path) -> list[str]:
    tensors = load_file(here / "a/model.safetensors")
    tensors["lm_head.weight"] = torch.ones(5, 8)
    save_file(tensors, here / "a/model.safetensors")
    return merge("a", "b")


def _inner_weights(here: Path) -> list[str]:
    shutil.copytree(here / "a", here / "base/unet")
    return merge("a", "b")


def _without_inner(here: Path, match: re.Match[str]) -> list[str]:
    shutil.copytree(here / match[2], here / "copy", ignore=shutil.ignore_patterns(match[1]))
    return merge("a", "b", p="copy")


def _variance(here: Path) -> list[str]:
    for name, value in {"base": 1.0, "a": 0.1}.items():
        shutil.rmtree(here / name)
        save_file({"running_var": torch.tensor([value])}, here / f"{name}.safetensors")
    return [*merge("a.safetensors", p="base.safetensors", method="task_arithmetic"), "--set", "scaling=2"]


def _in_shards(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    (folder / "model.safetensors").unlink()
    save_folder(folder, layout, iter(tensors.items()), 500)


def _shard_missing(here: Path) -> list[str]:
    _in_shards(here / "a")
    next((here / "a").glob("model-00002*")).rename(here / "kept")
    return merge("a", "b")


def _one_shard(here: Path) -> list[str]:
    _in_shards(here / "a")
    return merge(next(Path("a").glob("model-00002*")), "b")


def _again(here: Path, match: re.Match[str]) -> list[str]:
    (here / "kept").rename(here / match[1])
    return merge("a", "b")


def _cut(here: Path) -> list[str]:
    file = here / "a/model.safetensors"
    shutil.copy(file, here / "kept")
    file.write_bytes(file.read_bytes()[:-8])
    return merge("a", "b")


def _does(command: list[str]) -> Callable[..., list[str]]:
    return lambda *_: command


ADVICE = {
    "weights of an adapter in .bin": Advice(
        _bin_adapter, r"adapter_model\.bin holds pickled.*give lora: .*weights_only=True", _executed(merge("lora", "a"))
    ),
    "an adapter in .bin, shown": Advice(
        lambda here: _bin_adapter(here) and ["show", "lora"], "give lora: ", _executed(["show", "base", "lora"])
    ),
    "an adapter under its name": Advice(
        _named_adapter, "in a sub-folder: give (trained/food)$", lambda _, match: merge(match[1], "a")
    ),
    "a checkpoint of training": Advice(
        _checkpoint, "in a sub-folder: give (a/checkpoint-5)$", lambda _, match: merge(match[1], "b")
    ),
    "a model in two forms": Advice(
        _two_forms,
        r"got 2 .*: (model\.safetensors), (model.*json) are there; give one of them with its path",
        lambda _, match: merge(f"a/{match[1]}", f"a/{match[2]}"),
    ),
    "another format": Advice(
        _does(merge("a/config.json")), r"is no \.safetensors file; expected one, or the folder", _does(merge("a"))
    ),
    "a shard is missing": Advice(_shard_missing, r"(\S+) is missing; .*download or save the model again", _again),
    "one shard": Advice(
        _one_shard,
        r"one file of a model that has several: give its folder, (a)$",
        lambda _, match: merge(match[1], "b"),
    ),
    "a cut file": Advice(_cut, r"(\S+) is not a whole safetensors file .*; make it again", _again),
    "a model beside its adapter: the model": Advice(
        _model_and_adapter, r"give (\S+) for the whole model", lambda _, match: merge(match[1], "b")
    ),
    "a model beside its adapter: apart": Advice(
        _model_and_adapter, r"move (\S+) and (\S+) into a folder of their own", _moved
    ),
    "the weights of an adapter": Advice(
        _does(merge(f"lora/{WEIGHTS}")), "expected its folder, with adapter_config.json", _does(merge("lora"))
    ),
    "an adapter as P": Advice(_does(merge("a", p="lora")), "expected the model that it adapts", _does(merge("a"))),
    "targets without weights": Advice(_lacking, r"(target_modules) in .* or name there only", _named_only),
    "another head": Advice(_other_head, "; (--heads keep) merges", lambda _, m: [*merge("a", "b"), *m[1].split()]),
    "weights in a sub-folder of P": Advice(
        _inner_weights, r"the sub-folder '(\w+)' holds weights.*give a copy of (\w+) without 'unet'", _without_inner
    ),
    "a negative variance": Advice(
        _variance,
        "expected a smaller scaling",
        _does([*merge("a.safetensors", p="base.safetensors", method="task_arithmetic"), "--set", "scaling=.5"]),
    ),
    "a grid": Advice(
        _does(merge("a", "b", method="breadcrumbs")),
        r"grid for ([\w.]+): \[([\d.]+).*choose one with --set \1=VALUE",
        lambda _, match: [*merge("a", "b", method="breadcrumbs"), "--set", f"{match[1]}={match[2]}"],
    ),
    "nothing that merges": Advice(
        _does(merge("a", "b", method="dare")), "as in '(dare.*?)'", lambda _, match: merge("a", "b", method=match[1])
    ),
    "a misspelled method": Advice(
        _does(merge("a", "b", method="tiez")), "did you mean '(.*?)'", lambda _, match: merge("a", "b", method=match[1])
    ),
    "the methods": Advice(_does(merge("a", method="nothing")), "see '(fusion methods)'", lambda _, m: m[1].split()[1:]),
    "all about a method": Advice(
        _does([*merge("a", method="ties"), "--set", "x=1"]),
        "see '(fusion methods ties)'",
        lambda _, m: m[1].split()[1:],
    ),
    "the help": Advice(_does(["merge", "ties"]), "see '(fusion merge --help)'", lambda _, m: m[1].split()[1:]),
    "a file for many models": Advice(
        _does([*merge("a", "b", out="out.safetensors"), "--heads", "keep"]),
        "expected --out to be a folder",
        _does([*merge("a", "b"), "--heads", "keep"]),
    ),
    "an OUT that exists": Advice(
        _does(merge("a", out="b")), "remove it or choose another name", _does(merge("a", out="another"))
    ),
    "a name on the hub": Advice(
        _does(merge("org/name-7b")), "nothing is downloaded.* run hf download org/name-7b --local-dir FOLDER", None
    ),
    "an old name on the hub": Advice(_does(["show", "gpt2"]), "run hf download gpt2 --local-dir FOLDER", None),
}


@pytest.mark.parametrize("name", ADVICE)
def test_advice_works_when_it_is_followed(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    advice = ADVICE[name]
    command = advice.fail(here)
    capsys.readouterr()
    assert main(command) in (1, 2)
    message = error(capsys)
    match = re.search(advice.says, message)
    assert match, message
    if advice.follow:
        command = advice.follow(here, match)
        strict = ["--strict"] if command[0] == "merge" else []
        assert main([*command, *strict]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", ["./name", "a/none", "/org/name", "x/y/z", "name.safetensors", "org/name.safetensors"])
def test_a_path_that_is_no_name_on_the_hub_is_not_taken_for_one(
    path: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", path]) == 2
    assert "hf download" not in error(capsys) or path == "./name"  # Path drops the dot


def test_a_warning_names_a_command_that_shows_more(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(here / "base")
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)
    model.save_pretrained(here / "a")
    capsys.readouterr()
    assert main(merge("a")) == 0
    command = re.search("see 'fusion (.*?)'", capsys.readouterr().err)
    assert command and main(command[1].split()) == 0


def test_an_adapter_is_passed_as_its_error_says(here: Path) -> None:
    base = Checkpoint("base")
    with pytest.raises(
        ValueError, match=r"lora\S+ is a PEFT adapter: pass (Adapter\('lora', P\)), of fusion\.adapter$"
    ) as found:
        TaskVectors(base, [Checkpoint("lora")])
    passed = eval(str(found.value).partition("pass ")[2].partition(", of")[0], {"Adapter": Adapter, "P": base})
    assert len(TaskVectors(base, [passed])) == 1


def test_what_is_no_mapping_is_passed_as_its_error_says(here: Path) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(here / "a")
    base: Any = "base"
    with pytest.raises(ValueError, match=r"pass (Checkpoint\('base'\))$") as found:
        TaskVectors(base, [model.state_dict()])
    opened = eval(str(found.value).partition("pass ")[2], {"Checkpoint": Checkpoint})
    with pytest.raises(ValueError, match=r"pass its state_dict\(\)$"):
        TaskVectors(opened, [model])
    assert len(TaskVectors(opened, [model.state_dict()])) == 1
