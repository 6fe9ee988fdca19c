"""`fusion merge` of folders that hold more than one model: adapters beside models, sub-folders, tied heads."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, error, names, read
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    XLMConfig,
    XLMWithLMHeadModel,
    XLNetConfig,
    XLNetLMHeadModel,
)

from fusion.architecture import is_tied, read_config, untie
from fusion.artifacts import read_json, write_json
from fusion.cli import main
from fusion.folder import SMALL


def combine(base: Path, out: Path, *finetuned: Path, method: str = "simple_average", options: Any = ()) -> int:
    """The exit code of a merge of `finetuned`."""
    each = map(str, finetuned)
    command = ["merge", method, *options, "--pretrained", str(base), "--finetuned", *each, "--out", str(out), "--quiet"]
    return main(command)


@pytest.fixture
def both(models: Path, tmp_path: Path) -> Path:
    """A folder that holds the whole model `a` and the adapter `lora`."""
    shutil.copytree(models / "a", tmp_path / "both")
    return shutil.copytree(models / "lora", tmp_path / "both", dirs_exist_ok=True)


def test_a_whole_model_beside_an_adapter_is_refused_and_both_ways_out_lead_out(
    models: Path, both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert combine(models / "base", tmp_path / "out", both) == 1
    message = error(capsys)
    assert "adapter_config.json" in message and f"give {both / 'model.safetensors'} for the whole model" in message
    assert "move adapter_config.json and adapter_model.safetensors into a folder of their own" in message
    assert main(["show", str(models / "base"), str(both)]) == main(["show", str(both)]) == 1
    assert combine(both, tmp_path / "out", models / "a") == 1

    assert combine(models / "base", tmp_path / "whole", both / "model.safetensors") == 0
    assert_same(read(tmp_path / "whole"), read(models / "a"))
    (tmp_path / "own").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.move(both / name, tmp_path / "own" / name)
    assert combine(models / "base", tmp_path / "apart", both, tmp_path / "own") == 0
    assert combine(models / "base", tmp_path / "again", models / "a", models / "lora") == 0
    assert_same(read(tmp_path / "apart"), read(tmp_path / "again"))


def test_the_pickled_weights_of_an_adapter_beside_a_model_are_named_as_they_are(
    models: Path, both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (both / "adapter_model.safetensors").rename(both / "adapter_model.bin")
    assert combine(models / "base", tmp_path / "out", both) == 1
    assert "move adapter_config.json and adapter_model.bin into a folder of their own" in error(capsys)


def test_of_a_sharded_model_beside_an_adapter_the_index_is_the_way_out(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = shutil.copytree(models / "b", tmp_path / "both")
    shutil.copytree(models / "lora", both, dirs_exist_ok=True)
    assert combine(models / "base", tmp_path / "out", both) == 1
    assert f"give {both / 'model.safetensors.index.json'} for" in error(capsys)
    assert combine(models / "base", tmp_path / "out", both / "model.safetensors.index.json") == 0


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "consolidated.safetensors", "tf_model.h5"])
def test_a_whole_model_in_any_form_beside_an_adapter_is_refused(
    name: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = shutil.copytree(models / "lora", tmp_path / "both")
    (both / name).write_text("x")
    assert combine(models / "base", tmp_path / "out", both) == 1
    assert f"and a whole model ({name}); expected one of them: move" in error(capsys)


def test_what_a_trainer_leaves_beside_an_adapter_is_no_whole_model(models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models / "lora", tmp_path / "checkpoint-500")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
        (folder / name).write_text("x")
    assert combine(models / "base", tmp_path / "out", folder) == 0


def test_sub_folders_without_weights_are_copied_and_exports_left_out_aloud(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(models / "base", tmp_path / "base")
    exported = ("onnx/model.onnx", "original/model.00.pth", "coreml/x/weight.bin")
    for name in ("1_Pooling/config.json", "1_Pooling/more/note.txt", *exported, ".cache/lock", "1_Pooling/.x"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("{}")
    (base / "1_Pooling/circle").symlink_to(base)
    assert combine(base, tmp_path / "out", models / "a") == 0
    assert names(tmp_path / "out") == names(models / "base") | {"README.md", "1_Pooling"}
    assert names(tmp_path / "out/1_Pooling") == {"config.json", "more"}
    assert names(tmp_path / "out/1_Pooling/more") == {"note.txt"}
    assert capsys.readouterr().err.startswith("left out: onnx, coreml, original (made of the weights of P")


def test_large_files_of_no_known_kind_are_left_out_aloud(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(models / "base", tmp_path / "base")
    (base / "1_Index").mkdir()
    for name, size in {"1_Index/all.faiss": SMALL + 1, "corpus.txt": SMALL + 1, "1_Index/few.faiss": 9}.items():
        with open(base / name, "wb") as file:
            file.truncate(size)
    assert combine(base, tmp_path / "out", models / "a") == 0
    assert names(tmp_path / "out/1_Index") == {"few.faiss"} and not (tmp_path / "out/corpus.txt").exists()
    assert capsys.readouterr().err.startswith("left out: 1_Index/all.faiss, corpus.txt (over 100 MB; copy it into ")


def test_a_sub_folder_with_weights_is_refused_by_name_before_the_merge_and_without_it_merges(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(models / "base", tmp_path / "base")
    (base / "2_Dense").mkdir()
    save_file({"linear.weight": torch.ones(2, 2)}, base / "2_Dense/model.safetensors")
    assert combine(base, tmp_path / "out", models / "a") == 1
    assert "the sub-folder '2_Dense' holds weights (2_Dense/model.safetensors)" in error(capsys)
    assert names(tmp_path) == {"base"}
    assert combine(base, tmp_path / "out.safetensors", models / "a") == 0  # of which nothing but weights is written
    shutil.rmtree(base / "2_Dense")
    assert combine(base, tmp_path / "out", models / "a") == 0


def test_a_running_variance_that_a_merge_makes_negative_is_an_error_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"p": 1.0, "a": 0.4}.items():
        save_file({"bn.running_var": torch.full((3,), value)}, tmp_path / f"{name}.safetensors")
    base, tuned, out = (tmp_path / f"{name}.safetensors" for name in ("p", "a", "out"))
    assert combine(base, out, *[tuned] * 8, method="task_arithmetic", options=["--set", "scaling=0.3"]) == 1
    message = error(capsys)
    assert "'bn.running_var' holds -0.44" in message and "expected a smaller scaling" in message and not out.exists()
    assert combine(base, out, *[tuned] * 8, method="task_arithmetic", options=["--set", "scaling=0.1"]) == 0


# --- tied embeddings


SIZES: Any = dict(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, tie_word_embeddings=True,
)  # fmt: skip
WORDS = torch.arange(8)[None]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of tied embeddings."""
    folder = tmp_path_factory.mktemp("tied") / "p"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(folder)
    return folder


def adapted(base: Path, out: Path, **options: Any) -> torch.Tensor:
    """The logits of a model with a random adapter, which is saved in `out`."""
    model: Any = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(r=2, **options))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(out)
    loaded: Any = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), str(out))
    return loaded.eval()(WORDS).logits.detach()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
    ids=["factors of the embedding", "the whole embedding", "factors of the head"],
)
def test_an_adapter_on_a_tied_embedding_is_refused_and_the_recipe_of_the_error_gives_the_trained_model(
    options: dict[str, Any], tied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    wanted = adapted(tied, tmp_path / "adapter", **options)
    capsys.readouterr()
    assert combine(tied, tmp_path / "out", tmp_path / "adapter") == 1
    message = error(capsys)
    assert "input and output embedding are tied" in message and untie(read_config(tied)) in message
    recipe = message.partition("--pretrained: ")[2]
    exec(recipe, {"P": tied, "UNTIED": tmp_path / "untied"})
    assert combine(tmp_path / "untied", tmp_path / "out", tmp_path / "adapter", options=["--strict"]) == 0
    merged: Any = LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(merged(WORDS).logits, wanted, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_on_other_layers_of_a_tied_model_is_merged(tied: Path, tmp_path: Path) -> None:
    wanted = adapted(tied, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    assert combine(tied, tmp_path / "out", tmp_path / "adapter") == 0
    merged: Any = LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(merged(WORDS).logits, wanted, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_on_the_embedding_that_encoder_and_decoder_share_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes: Any = dict(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path / "p")
    model: Any = T5ForConditionalGeneration.from_pretrained(tmp_path / "p")
    get_peft_model(model, LoraConfig(r=2, target_modules=["q", "shared"])).save_pretrained(str(tmp_path / "adapter"))
    capsys.readouterr()
    assert combine(tmp_path / "p", tmp_path / "out", tmp_path / "adapter") == 1
    assert "'shared.weight', which is tied" in error(capsys)


BERT: Any = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
OTHERS: dict[str, Any] = {
    "t5": (
        T5ForConditionalGeneration,
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0),
        ["lm_head"],
    ),
    "bert": (BertForMaskedLM, BertConfig(vocab_size=40, **BERT), ["word_embeddings"]),
    "distilbert": (
        DistilBertForMaskedLM,
        DistilBertConfig(vocab_size=40, dim=16, hidden_dim=24, n_layers=1, n_heads=2),
        ["vocab_projector"],
    ),
    "mamba": (
        MambaForCausalLM,
        MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4),
        ["embeddings"],
    ),
    "xlnet": (
        XLNetLMHeadModel,
        XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=24),
        ["word_embedding"],
    ),
    "xlm": (XLMWithLMHeadModel, XLMConfig(vocab_size=40, emb_dim=16, n_layers=1, n_heads=2), ["embeddings"]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OTHERS)
def test_a_tied_model_of_any_type_is_untied_as_the_error_says(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, config, targets = OTHERS[name]
    torch.manual_seed(0)
    base = kind(config)
    for parameter in base.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    base.save_pretrained(tmp_path / "p")
    model: Any = get_peft_model(kind.from_pretrained(tmp_path / "p"), LoraConfig(r=2, target_modules=targets))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    inputs = {"input_ids": WORDS} | ({"decoder_input_ids": WORDS} if name == "t5" else {})
    wanted = model.eval()(**inputs).logits
    capsys.readouterr()
    assert combine(tmp_path / "p", tmp_path / "out", tmp_path / "adapter") == 1
    message = error(capsys)
    assert "input and output embedding are tied" in message
    exec(message.partition("--pretrained: ")[2], {"P": tmp_path / "p", "UNTIED": tmp_path / "untied"})
    assert combine(tmp_path / "untied", tmp_path / "out", tmp_path / "adapter", options=["--strict"]) == 0
    merged: Any = kind.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(merged(**inputs).logits, wanted, atol=1e-4)


TABLE = {"embed_tokens.weight": torch.ones(3, 2)}
HEAD = {"lm_head.weight": torch.zeros(3, 2)}


@pytest.mark.parametrize(
    ("config", "model", "wanted"),
    [
        ({"tie_word_embeddings": True}, TABLE, True),
        ({"tie_word_embeddings": False}, TABLE, False),
        ({"text_config": {"tie_word_embeddings": True}}, TABLE, True),
        ({"tie_word_embeddings": True, "architectures": ["BertForSequenceClassification"]}, TABLE, False),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, TABLE, True),
        ({"model_type": "gpt2"}, TABLE | {"lm_head.weight": torch.ones(3, 2)}, True),
        ({"model_type": "llama"}, TABLE | HEAD, False),
        ({"model_type": "bert", "architectures": ["BertModel"]}, TABLE, False),
        ({"model_type": "vit"}, {"w": torch.ones(1)}, False),
        ({}, TABLE, False),
    ],
)
def test_a_model_is_tied_as_its_configuration_says_or_where_it_writes_words_without_a_head(
    config: dict[str, Any], model: dict[str, torch.Tensor], wanted: bool
) -> None:
    assert is_tied(config, model) is wanted


def test_a_configuration_that_is_no_object_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", [1])
    with pytest.raises(ValueError, match=r"config\.json: got list, expected an object"):
        read_config(tmp_path)


@pytest.fixture
def with_head(tied: Path, tmp_path: Path) -> Path:
    """A fine-tuned copy of the tied model that stores its head too."""
    folder = shutil.copytree(tied, tmp_path / "with_head")
    state = {name: tensor + 0.01 for name, tensor in load_file(folder / "model.safetensors").items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_stored_copy_of_a_tied_head_is_left_out_aloud(
    tied: Path, with_head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert combine(tied, tmp_path / "out", tied, with_head) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("left out: 'lm_head.weight' of ") and str(with_head) in line
    found = load_file(tmp_path / "out/model.safetensors")
    start = load_file(tied / "model.safetensors")
    assert found.keys() == start.keys()
    assert all(torch.allclose(found[name], start[name] + 0.005, atol=1e-6) for name in start)


def test_a_head_that_was_trained_apart_from_a_tied_embedding_is_an_error(
    tied: Path, with_head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(with_head / "model.safetensors")
    state["lm_head.weight"] += 1e-3
    save_file(state, with_head / "model.safetensors", {"format": "pt"})
    assert combine(tied, tmp_path / "out", with_head) == 1
    message = error(capsys)
    assert "'lm_head.weight', which is tied" in message and "the head was trained apart" in message
    exec(message.partition("--pretrained: ")[2], {"P": tied, "UNTIED": tmp_path / "untied"})
    assert combine(tmp_path / "untied", tmp_path / "apart", with_head, options=["--strict"]) == 0
    write_json(tmp_path / "config.json", read_json(tied / "config.json") | {"tie_word_embeddings": False})
    shutil.copy(tied / "model.safetensors", tmp_path)
    assert combine(tmp_path / "model.safetensors", tmp_path / "out", with_head) == 1
    assert "extra tensors ['lm_head.weight']" in error(capsys)
