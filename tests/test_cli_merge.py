"""`fusion merge`: real models of transformers and PEFT, from disk to disk."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoints import assert_same, error, expected, fuse, names, read
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer
from waiting import BACKSTOP

from fusion import methods
from fusion.artifacts import read_json, sha256
from fusion.catalogue import recipe
from fusion.checkpoint import INDEX, Checkpoint
from fusion.cli import main
from fusion.merging import Order, run
from fusion.sharded import save_folder
from fusion.stopping import Stopping
from fusion.vectors import TaskVectors


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare + ties"])
def test_a_merge_on_disk_loads_as_the_merge_of_the_loaded_models(method: str, models: Path, tmp_path: Path) -> None:
    assert fuse(models, tmp_path / "out", method) == 0
    assert_same(read(tmp_path / "out"), expected(models, method))


def test_the_folder_has_the_tokenizer_and_configuration_and_no_other_weights(models: Path, tmp_path: Path) -> None:
    assert fuse(models, tmp_path / "out") == 0
    assert names(tmp_path / "out") == names(models / "base") | {"README.md"}
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("red")["input_ids"]
    assert (tmp_path / "out/config.json").read_bytes() == (models / "base/config.json").read_bytes()


def test_weights_and_what_is_large_or_hidden_are_not_copied(models: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in (models / "base").iterdir():
        (base / path.name).symlink_to(path)  # as in the cache of a model hub
    for name in (
        "pytorch_model.bin",
        "flax_model.msgpack",
        "optimizer.pt",
        "model.onnx",
        "README.md",
        ".gitattributes",
    ):
        (base / name).write_text("x")
    (base / "pytorch_model.bin.index.json").write_text("{}")
    (base / "chat_template.jinja").write_text("{{ x }}")
    with open(base / "corpus.txt", "wb") as file:
        file.truncate(10**8 + 1)
    arguments = ["--finetuned", str(models / "a"), "--out", str(tmp_path / "out"), "--quiet"]
    assert main(["merge", "simple_average", "--pretrained", str(base), *arguments]) == 0
    assert names(tmp_path / "out") == names(models / "base") | {"README.md", "chat_template.jinja"}
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_a_folder_is_sharded_as_transformers_reads_it(models: Path, tmp_path: Path) -> None:
    assert fuse(models, tmp_path / "out", "task_arithmetic", "--max-shard-size", "20KB") == 0
    shards = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 2 and (tmp_path / "out" / INDEX).is_file()
    assert_same(read(tmp_path / "out"), expected(models))
    assert fuse(tmp_path, tmp_path / "again", "task_arithmetic", finetuned="") == 2


def test_an_adapter_is_merged_among_full_models(models: Path, tmp_path: Path) -> None:
    command = ["merge", "task_arithmetic", "--pretrained", str(models / "base"), "--quiet", "--finetuned"]
    assert main([*command, str(models / "a"), str(models / "lora"), "--out", str(tmp_path / "out")]) == 0
    loaded: Any = PeftModel.from_pretrained(AutoModel.from_pretrained(models / "base"), str(models / "lora"))
    finetuned = [read(models / "a"), dict(loaded.merge_and_unload().state_dict())]
    taus = TaskVectors(read(models / "base"), finetuned)
    wanted = methods.merge("task_arithmetic", taus, rng=torch.Generator()).for_task(0).tensors()
    assert_same(read(tmp_path / "out"), wanted, atol=1e-6)


def test_a_file_is_merged_into_a_file_with_its_card_beside_it(models: Path, tmp_path: Path) -> None:
    pretrained, finetuned, out = (str(tmp_path / f"{name}.safetensors") for name in ("p", "a", "out"))
    save_file({"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}, pretrained)
    save_file({"w": torch.tensor([3.0, 1.0]), "n": torch.tensor(3)}, finetuned)
    command = ["merge", "task_arithmetic", "--pretrained", pretrained, "--finetuned", finetuned, finetuned]
    assert main([*command, "--set", "scaling=0.25", "--out", out]) == 0
    found = load_file(out)
    assert found["w"].tolist() == [2.0, 1.5] and found["n"] == 3  # 1 + 0.25 · (2 + 2), 2 + 0.25 · (−1 − 1)
    assert Checkpoint(out).metadata == {"format": "pt"} and (tmp_path / "out.md").is_file()
    assert main([*command, "--out", str(tmp_path / "folder")]) == 0
    assert names(tmp_path / "folder") == {"model.safetensors", "README.md"}


def test_a_method_of_one_model_a_task_writes_one_folder_a_model(models: Path, tmp_path: Path) -> None:
    assert fuse(models, tmp_path / "out", "emr", finetuned="ab") == 0
    assert names(tmp_path / "out") == {"0_a", "1_b", "README.md"}
    taus = TaskVectors(read(models / "base"), [read(models / name) for name in "ab"])
    merged = methods.merge("emr", taus, rng=torch.Generator())
    for task, name in enumerate(("0_a", "1_b")):
        assert_same(read(tmp_path / "out" / name), merged.for_task(task).tensors())
    for folder in ("out", "out/0_a", "out/1_b"):
        assert "parameters beyond those of one" in (tmp_path / folder / "README.md").read_text()


def test_a_method_of_one_model_a_task_does_not_fit_one_file(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuse(models, tmp_path / "out.safetensors", "emr") == 2
    assert "emr makes one model a task; expected --out to be a folder" in error(capsys)


@pytest.mark.parametrize(("option", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_another_type_is_rounded_once_and_named_in_the_configuration(
    option: str, dtype: torch.dtype, models: Path, tmp_path: Path
) -> None:
    assert fuse(models, tmp_path / "out", "task_arithmetic", "--dtype", option) == 0
    wanted = {name: t.to(dtype) if t.is_floating_point() else t for name, t in expected(models).items()}
    assert_same(read(tmp_path / "out"), wanted)
    named = read_json(tmp_path / "out/config.json")
    assert {named.get("dtype"), named.get("torch_dtype")} - {None} == {str(dtype).removeprefix("torch.")}


def test_a_model_in_half_precision_is_merged_in_single_and_can_be_kept_so(tmp_path: Path) -> None:
    pretrained, finetuned, out = (str(tmp_path / f"{name}.safetensors") for name in ("p", "a", "out"))
    save_file({"w": torch.tensor([1.0], dtype=torch.bfloat16)}, pretrained)
    save_file({"w": torch.tensor([1 + 2**-8])}, finetuned)
    command = ["merge", "task_arithmetic", "--pretrained", pretrained, "--finetuned", finetuned, "--quiet"]
    assert main([*command, "--set", "scaling=0.5", "--dtype", "fp32", "--out", out]) == 0
    assert load_file(out)["w"].item() == 1 + 2**-9


def test_a_result_that_overflows_the_type_asked_for_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrained, finetuned = (str(tmp_path / f"{name}.safetensors") for name in ("p", "a"))
    save_file({"w": torch.tensor([1e5])}, pretrained)
    save_file({"w": torch.tensor([1e5])}, finetuned)
    command = ["merge", "simple_average", "--pretrained", pretrained, "--finetuned", finetuned, "--quiet"]
    assert main([*command, "--dtype", "fp16", "--out", str(tmp_path / "out.safetensors")]) == 1
    assert "'w' is not finite in torch.float16" in error(capsys)
    assert names(tmp_path) == {"p.safetensors", "a.safetensors"}


def test_the_seed_decides_what_is_drawn(models: Path, tmp_path: Path) -> None:
    for out, seed in {"one": "1", "again": "1", "two": "2"}.items():
        assert fuse(models, tmp_path / out, "dare+task_arithmetic", "--seed", seed, "--quiet") == 0
    one, again, two = (Checkpoint(tmp_path / out) for out in ("one", "again", "two"))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], two[name]) for name in one)


# --- the card


def test_the_card_holds_the_recipe_and_the_hash_of_every_input(models: Path, tmp_path: Path) -> None:
    command = ["--set", "density=0.5", "--seed", "7"]
    assert fuse(models, tmp_path / "out", "ties", *command) == 0
    text = (tmp_path / "out/README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers", "base_model": ["base"], "tags": ["merge"]}
    shards = sorted((models / "b").glob("model-*.safetensors"))
    assert len(shards) > 2
    for path in [models / f"{name}/model.safetensors" for name in ("base", "a", "c")] + shards:
        assert f"| {path} | {path.stat().st_size} | {sha256(path)} |" in body
    assert "- **ties**: TIES-merging: trim, elect sign, merge. Yadav et al., NeurIPS 2023, arXiv 2306.01708" in body
    assert "| density | 0.5 |" in body and "| scaling | 1.0 |" in body and "| seed | 7 |" in body
    assert f"fusion merge ties --pretrained {models / 'base'}" in body and "fusion-suite" in body


def test_the_card_names_a_model_of_the_hub_as_the_hub_does(models: Path, tmp_path: Path) -> None:
    from fusion.card import model_name

    snapshot = tmp_path / "models--google-bert--bert-base/snapshots/0123abcd"
    assert model_name(snapshot) == "google-bert/bert-base"
    assert model_name(tmp_path / "my model.safetensors") == "my model"


def test_the_hashes_of_an_adapter_include_its_configuration(models: Path, tmp_path: Path) -> None:
    command = ["merge", "simple_average", "--pretrained", str(models / "base"), "--quiet", "--finetuned"]
    assert main([*command, str(models / "lora"), "--out", str(tmp_path / "out.safetensors")]) == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert sha256(models / "lora" / name) in (tmp_path / "out.md").read_text()


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["merg"], "invalid choice: 'merg'"),
        (["merge", "ties"], "required: --pretrained, --finetuned, --out (see 'fusion merge --help')"),
        (["merge", "tiez"], "unknown method 'tiez'; did you mean 'ties'?"),
        (["merge", "dare+tie"], "unknown algorithm 'tie'; did you mean 'ties'?"),
        (["merge", "breadcrumbs"], "row 'breadcrumbs' has a grid for task_arithmetic.scaling"),
        (["merge", "dare"], "merges nothing; expected a merging method in it, as in 'dare + ties'"),
        (["merge", "adamerging"], "adamerging is unlabelled: it needs unlabelled inputs"),
        (["merge", "concrete_layer_wise"], "it runs in the workflow, as a row under `methods:`"),
        (["merge", "fisher"], "fisher is labelled: it needs labelled examples"),
        (["merge", "ties", "--set", "denity=1"], "unknown hyper-parameter of 'ties' 'denity'; did you mean 'density'?"),
        (["merge", "dare+ties", "--set", "ties.densit=1"], "did you mean 'ties.density'?"),
        (["merge", "ties", "--set", "density=0"], "--set density: got 0"),
        (["merge", "ties", "--set", "density=many"], "--set density: got 'many'"),
        (["merge", "ties", "--set", "aggregation=median"], "'mean' or 'sum'"),
        (["merge", "ties", "--set", "density"], "got --set 'density', expected name=value"),
        (["merge", "ties", "--set", "density=[1"], "is no YAML scalar"),
        (["merge", "ties", "--max-shard-size", "big"], "got size 'big'"),
        (["merge", "ties", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["merge", "ties", "--seed", "x"], "got 'x', expected a whole number"),
        (["merge", "ties", "--finetuned", "/absent/model"], "/absent/model does not exist"),
        (["methods", "tiez"], "did you mean 'ties'?"),
        (["show"], "required: CHECKPOINT"),
        (["show", "/absent"], "/absent does not exist"),
    ],
    ids=" ".join,
)
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[:1] == ["merge"] and arguments != ["merge", "ties"]:
        arguments = [*arguments, "--pretrained", str(models / "base"), "--out", str(tmp_path / "out")]
        arguments += [] if "--finetuned" in arguments else ["--finetuned", str(models / "a")]
    assert main(arguments) == 2
    assert message in error(capsys)
    assert names(tmp_path) == set()


def test_what_exists_is_never_written_over(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine/thesis.tex", "one.safetensors", "two.md"):
        (tmp_path / name).write_text("mine")
    for name, taken in {"mine": "mine", "one.safetensors": "one.safetensors", "two.safetensors": "two.md"}.items():
        assert fuse(models, tmp_path / name) == 2
        assert f"{tmp_path / taken} exists; remove it or choose another name" in error(capsys)
    assert fuse(models, models / "a") == 2
    assert (tmp_path / "mine/thesis.tex").read_text() == (tmp_path / "two.md").read_text() == "mine"


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_what_comes_to_be_during_a_merge_is_left_as_it_is(name: str, models: Path, tmp_path: Path) -> None:
    out = tmp_path / name
    out.mkdir()  # after the program has looked, before the merge ends
    (out / "thesis.tex").write_text("mine")
    order = Order(
        recipe=recipe("simple_average", []), pretrained=models / "base", finetuned=[models / "a"], out=out, seed=0,
        dtype=None, shard_bytes=1 << 30, quiet=True, command=["fusion"],
    )  # fmt: skip
    with Stopping() as stopping, pytest.raises(FileExistsError, match="is left as it is"):
        run(order, stopping)
    assert names(tmp_path) == {name} and names(out) == {"thesis.tex"}


def test_a_folder_that_exists_is_refused_before_anything_is_read_even_if_it_is_empty(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for name in ("out", "link"):
        assert fuse(models, tmp_path / name) == 2
        assert "exists; remove it or choose another name" in error(capsys)


@pytest.mark.parametrize("seed", ["-1", str(1 << 64), "one"])
def test_a_seed_that_no_generator_takes_is_wrong_use(seed: str, models: Path, tmp_path: Path) -> None:
    assert fuse(models, tmp_path / "out", "--seed", seed) == 2


def fails(arguments: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a merge that fails and leaves nothing."""
    assert main(["merge", *arguments, "--out", str(out)]) == 1
    assert not out.exists() and not list(out.parent.glob(f".{out.name}*"))
    return error(capsys)


def test_models_that_do_not_fit_fail_with_both_names(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "p.safetensors")
    save_file({"w": torch.ones(3)}, tmp_path / "a.safetensors")
    command = ["ties", "--pretrained", str(tmp_path / "p.safetensors"), "--finetuned", str(tmp_path / "a.safetensors")]
    assert re.search(r"got shape \(3,\) in .*a\.safetensors, expected \(2,\)", fails(command, tmp_path / "out", capsys))


def test_packed_integer_weights_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"w.qweight": torch.tensor([1], dtype=torch.int32)}, tmp_path / "p.safetensors")
    save_file({"w.qweight": torch.tensor([2], dtype=torch.int32)}, tmp_path / "a.safetensors")
    command = ["ties", "--pretrained", str(tmp_path / "p.safetensors"), "--finetuned", str(tmp_path / "a.safetensors")]
    assert "what is no float must agree" in fails(command, tmp_path / "out", capsys)


def test_types_that_are_not_written_fail_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "pa":
        save_file({"w": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / f"{name}.safetensors")
    command = ["simple_average", "--pretrained", str(tmp_path / "p.safetensors")]
    command += ["--finetuned", str(tmp_path / "a.safetensors")]
    assert "tensor 'w' is torch.float8_e4m3fn; expected one of F64, F32" in fails(command, tmp_path / "out", capsys)


def test_an_adapter_out_of_its_place_fails(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ties", "--pretrained", str(models / "lora"), "--finetuned", str(models / "a")]
    assert "is a PEFT adapter; expected the model that it adapts" in fails(command, tmp_path / "out", capsys)
    weights = str(models / "lora/adapter_model.safetensors")
    command = ["ties", "--pretrained", str(models / "base"), "--finetuned", weights]
    assert "expected its folder, with adapter_config.json" in fails(command, tmp_path / "out", capsys)


def test_a_method_that_cannot_merge_these_models_fails_with_its_reason(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuse(models, tmp_path / "out", "slerp", "--quiet") == 1  # three models; it takes two
    assert "got 3, expected 2" in error(capsys)
    assert names(tmp_path) == set()


# --- as a program


def program(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fusion.cli", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **options)


@pytest.mark.slow
def test_the_program_exits_with_the_code_and_reports_progress(models: Path, tmp_path: Path) -> None:
    arguments = ["merge", "task_arithmetic", "--pretrained", str(models / "base"), "--finetuned", str(models / "a")]
    done = program(*arguments, "--out", str(tmp_path / "out"))
    out, err = done.communicate(timeout=BACKSTOP)
    count = len(Checkpoint(models / "base"))
    assert done.returncode == 0 and not out
    assert err.splitlines()[0].startswith(f"1/{count} tensors, ") and f"{count}/{count} tensors" in err
    again = program(*arguments, "--out", str(tmp_path / "out"))
    assert again.communicate(timeout=BACKSTOP)[1].startswith("fusion: error: --out: ") and again.returncode == 2


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of many tensors, `p`, sharded, and `a`: a merge that takes long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("large")
    tensors = {f"w{i}": torch.randn(160, 160) for i in range(300)}
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    for name in "pa":
        (folder / name).mkdir()
        save_folder(folder / name, layout, iter(tensors.items()), 8 << 20)
        tensors = {name: tensor + 0.1 for name, tensor in tensors.items()}
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("number", "out"), [(signal.SIGINT, "out"), (signal.SIGTERM, "out.safetensors")])
def test_an_interrupted_merge_leaves_nothing(number: int, out: str, large: Path, tmp_path: Path) -> None:
    arguments = ["merge", "wudi", "--pretrained", str(large / "p"), "--finetuned", str(large / "a")]
    running = program(*arguments, "--out", str(tmp_path / out), "--set", "steps=1000")
    assert running.stderr is not None
    assert running.stderr.readline().startswith("1/300 tensors")
    assert names(tmp_path), "it has begun to write"
    running.send_signal(number)
    _, err = running.communicate(timeout=BACKSTOP)
    assert running.returncode == 1
    assert err.splitlines()[-1] == "fusion: error: interrupted; nothing was written"
    assert names(tmp_path) == set()
