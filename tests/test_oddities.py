"""What `fusion merge` finds odd about models that can be merged, and says before it merges them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import names
from safetensors.torch import save_file
from torch import Tensor

from fusion import methods
from fusion.artifacts import read_json, write_json
from fusion.catalogue import of_matrices
from fusion.cli import main
from fusion.pipelines import algorithms, kind, method_class
from fusion.vectors import TaskVectors

Text = pytest.CaptureFixture[str]


def merge(base: Path, out: Path, *finetuned: Path, method: str = "simple_average", options: Any = ()) -> int:
    each = map(str, finetuned)
    return main(
        ["merge", method, "--pretrained", str(base), "--finetuned", *each, "--out", str(out), "--quiet", *options]
    )


def warnings(capsys: Text) -> list[str]:
    """All lines on stderr, each a warning."""
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("warning: ") for line in lines), lines
    return lines


def write(path: Path, seed: int, size: int = 1100, **more: Tensor) -> Path:
    """A model that is one matrix and what a model of any origin has: scales near 1."""
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    save_file({"w": weight, "norm": torch.ones(size)} | more, path)
    return path


def test_ordinary_models_and_adapters_merge_without_a_word(models: Path, tmp_path: Path, capsys: Text) -> None:
    finetuned = [models / name for name in ("a", "b", "c", "lora")]
    assert merge(models / "base", tmp_path / "out", *finetuned, options=["--strict"]) == 0
    assert warnings(capsys) == [] and "## Warnings" not in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("size", [1100, 200])
def test_a_model_of_another_base_is_named_before_the_merge_and_in_the_card(
    size: int, tmp_path: Path, capsys: Text
) -> None:
    base, other = (write(tmp_path / f"{seed}.safetensors", seed, size) for seed in (0, 1))
    assert merge(base, tmp_path / "out", other) == 0
    (line,) = warnings(capsys)
    assert f"{other} is far from {base}: difference 1.4 of its norm, cosine " in line
    assert f"'fusion show {base} {other}'" in line
    card = (tmp_path / "out/README.md").read_text()
    assert f"## Warnings\n\n- {line.removeprefix('warning: ')}\n" in card


def test_what_is_odd_is_said_before_the_first_tensor_is_merged(tmp_path: Path, capsys: Text) -> None:
    base, other = (write(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1))
    command = ["--pretrained", str(base), "--finetuned", str(other), "--out", str(tmp_path / "out")]
    assert main(["merge", "simple_average", *command]) == 0
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: ") and second.startswith("1/2 tensors")


def test_strict_makes_an_error_of_what_is_odd_and_writes_nothing(tmp_path: Path, capsys: Text) -> None:
    base, other = (write(tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1))
    before = names(tmp_path)
    assert merge(base, tmp_path / "out", other, options=["--strict"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fusion: error: --strict: {other} is far from ") and names(tmp_path) == before


@pytest.mark.parametrize(("size", "distance", "count"), [(1100, 0.3, 0), (1100, 0.6, 1), (200, 2.0, 0)])
def test_a_small_model_may_move_far_and_a_large_one_not(
    size: int, distance: float, count: int, tmp_path: Path, capsys: Text
) -> None:
    base, tuned = write(tmp_path / "p.safetensors", 0, size), tmp_path / "a.safetensors"
    start, noise = (torch.randn(size, size, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    save_file({"w": start + distance * noise, "norm": torch.ones(size)}, tuned)
    assert merge(base, tmp_path / "out", tuned) == 0
    assert len(warnings(capsys)) == count


# --- configurations

LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1.0}  # of Gemma 3, as transformers 5 writes it, and 4
GEMMA3 = {"rope_theta": 1.0, "rope_local_base_freq": 2.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}


@pytest.mark.parametrize(
    ("ours", "theirs", "key", "values"),
    [
        ({"rope_theta": 1e4}, {"rope_theta": 1e6}, "rope_theta", ("1000000.0", "10000.0")),
        ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "rope_theta", ()),
        ({"rope_theta": 1.0}, {"rope_theta": 1.0, "rope_scaling": {"type": "yarn"}}, "rope_type", ("'yarn'",)),
        ({"layer_norm_eps": 1e-12}, {"layer_norm_eps": 1e-5}, "layer_norm_eps", ("1e-05", "1e-12")),
        ({"id2label": {"0": "cat"}}, {"id2label": {"0": "dog"}}, "id2label.0", ("'dog'", "'cat'")),
        ({"vocab_size": 3}, {"vocab_size": 4}, "vocab_size", ("4", "3")),
        ({"hidden_act": "gelu"}, {"hidden_act": "relu"}, "hidden_act", ("'relu'", "'gelu'")),
        ({"num_attention_heads": 2}, {"num_attention_heads": 4}, "num_attention_heads", ("4", "2")),
        ({"t": {"num_key_value_heads": 2}}, {"t": {"num_key_value_heads": 1}}, "t.num_key_value_heads", ("1", "2")),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}, "tie_word_embeddings", ("False", "True")),
        ({"rope_theta": 1.0}, {"rope_theta": 1.0, "rope_scaling": None, "rope_parameters": None}, "", ()),
        ({"rope_scaling": {"factor": 1.0}}, {"rope_scaling": {"factor": 1.0, "high_freq_factor": 2.0}}, "", ()),
        ({"high_freq_factor": 1.0}, {"high_freq_factor": 2.0}, "high_freq_factor", ("2.0", "1.0")),
        ({"num_experts_per_tok": 1}, {"num_experts_per_tok": 2}, "num_experts_per_tok", ("2", "1")),
        (
            {"rope_theta": 1.0, "rope_scaling": {"type": "mrope", "mrope_section": [1]}},
            {"rope_parameters": {"rope_theta": 1.0, "rope_type": "default", "mrope_section": [1]}},
            *("", ()),
        ),
        (GEMMA3, {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_theta": 2.0}}}, "", ()),
        (
            GEMMA3,
            {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_theta": 3.0}}},
            *("rope_local_base_freq", ("3.0", "2.0")),
        ),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, {"id2label": {"0": "cat", "1": "dog"}}, "", ()),
        ({"transformers_version": "4"}, {"transformers_version": "5", "vocab_size": 1}, "", ()),
    ],
)
def test_a_setting_that_changes_what_weights_compute_is_named_with_both_values(
    ours: dict[str, Any], theirs: dict[str, Any], key: str, values: tuple[str, ...], tmp_path: Path, capsys: Text
) -> None:
    for name, config in {"p": ours, "a": theirs}.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "model.safetensors", 0, 8)
        write_json(tmp_path / name / "config.json", config)
    assert merge(tmp_path / "p", tmp_path / "out", tmp_path / "a") == 0
    lines = warnings(capsys)
    assert len(lines) == bool(key)
    assert all(f"{tmp_path / 'a'} has {key} " in line and f"that of {tmp_path / 'p'} is kept" in line for line in lines)
    assert all(value in line for line in lines for value in values)


@pytest.mark.parametrize(("head", "count"), [({"lm_head.weight": torch.ones(2)}, 0), ({}, 1)])
def test_a_model_that_says_it_is_tied_is_not_odd_where_the_pretrained_one_has_a_head_of_its_own(
    head: dict[str, Tensor], count: int, tmp_path: Path, capsys: Text
) -> None:
    for name, is_tied in {"p": False, "a": True}.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "model.safetensors", 0, 8, **head)
        write_json(tmp_path / name / "config.json", {"text_config": {"tie_word_embeddings": is_tied}})
    assert merge(tmp_path / "p", tmp_path / "out", tmp_path / "a") == 0
    assert len(warnings(capsys)) == count


def folders(tmp_path: Path, name: str, *texts: str) -> list[Path]:
    """Models `0`, `1` … that differ in one text file."""
    found = [tmp_path / str(number) for number in range(len(texts))]
    for folder, text in zip(found, texts, strict=True):
        folder.mkdir()
        write(folder / "model.safetensors", 0, 8)
        (folder / name).write_text(text)
    return found


def test_the_same_classes_in_another_order_are_named_where_the_pretrained_model_has_no_names(
    tmp_path: Path, capsys: Text
) -> None:
    labels = ['{"id2label": {"0": "cat", "1": "dog"}}', '{"id2label": {"0": "dog", "1": "cat"}}']
    base, one, two, three = folders(tmp_path, "config.json", "{}", *labels, '{"id2label": {"0": "spam", "1": "ham"}}')
    assert merge(base, tmp_path / "same", one, one, three, options=["--strict"]) == 0
    assert merge(base, tmp_path / "out", one, two) == 0
    (line,) = warnings(capsys)
    assert f"{two} has id2label.0 'dog' in config.json and {one} has 'cat'" in line


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "more"),
    [
        ("vocab.txt", "a\nb\n", "b\na\n", "a\r\nb\r\nc\r\n"),
        ("vocab.json", '{"a": 0, "b": 1}', '{"a": 1, "b": 0}', '{"b":1,"a":0,"c":2}'),
        (
            "tokenizer.json",
            *('{"model": {"vocab": {"a": 0}}}', '{"model": {"vocab": {"a": 1}}}'),
            '{"version": "2", "model": {"vocab": {"a": 0, "b": 1}}}',
        ),
        (
            "tokenizer.json",
            *('{"model": {"vocab": [["a", 0.5], ["b", 0.1]]}}', '{"model": {"vocab": [["b", 0.5], ["a", 0.1]]}}'),
            '{"model": {"vocab": [["a", 0.5], ["b", 0.2]]}}',
        ),
        ("tokenizer.model", "one", "two", "one"),
    ],
)
def test_a_word_that_has_another_number_is_named_and_new_words_are_not_odd(
    name: str, ours: str, theirs: str, more: str, tmp_path: Path, capsys: Text
) -> None:
    base, other, longer = folders(tmp_path, name, ours, theirs, more)
    assert merge(base, tmp_path / "same", longer, options=["--strict"]) == 0
    assert merge(base, tmp_path / "out", other) == 0
    (line,) = warnings(capsys)
    assert f"{other} has another vocabulary in {name} than {base}" in line


# --- adapters


def renamed(adapter: Path, out: Path, base: str | None) -> Path:
    """A copy of an adapter that names another base."""
    shutil.copytree(adapter, out)
    config = out / "adapter_config.json"
    write_json(config, read_json(config) | {"base_model_name_or_path": base})
    return out


def test_adapters_of_different_bases_are_named_with_them(models: Path, tmp_path: Path, capsys: Text) -> None:
    one, two = (renamed(models / "lora", tmp_path / name, f"hub/{name}") for name in ("base", "llama"))
    assert merge(models / "base", tmp_path / "out", one, two) == 0
    different, against = warnings(capsys)
    assert f"different bases ({one}: hub/base, {two}: hub/llama)" in different
    assert f"{two} is an adapter of hub/llama and --pretrained is {models / 'base'}" in against


@pytest.mark.parametrize(
    "base", [None, "", "hub/Base", "/elsewhere/base/", "C:\\models\\base", "x/models--hub--base/snapshots/0123"]
)
def test_an_adapter_that_names_its_base_in_another_way_is_not_odd(
    base: str | None, models: Path, tmp_path: Path, capsys: Text
) -> None:
    adapter = renamed(models / "lora", tmp_path / "adapter", base)
    assert merge(models / "base", tmp_path / "out", adapter) == 0
    assert warnings(capsys) == []


# --- methods of matrices


def test_a_method_of_matrices_says_how_much_it_averages_of_stacked_experts(tmp_path: Path, capsys: Text) -> None:
    experts = {"experts.gate_up_proj": torch.randn(4, 8, 16), "experts.down_proj": torch.randn(4, 8, 8)}
    base = write(tmp_path / "p.safetensors", 0, 16, **experts)  # 256 + 16 + 768 parameters
    for method, count in {"tsv_m": 1, "dare+iso_c": 1, "ties": 0}.items():
        assert merge(base, tmp_path / method, base, method=method) == 0
        lines = warnings(capsys)
        assert len(lines) == count
        assert all("works on matrices, and 75 % of the parameters are in tensors of other" in line for line in lines)


def is_average(name: str, deltas: Tensor) -> bool:
    """Whether the method makes a multiple of the mean of the task vectors (T, *shape)."""
    taus = TaskVectors({"w": torch.zeros_like(deltas[0])}, [{"w": delta} for delta in deltas])
    merged = methods.merge(name, taus, rng=torch.Generator().manual_seed(0)).for_task(0).tensors()["w"]
    return torch.cosine_similarity(merged.flatten(), deltas.mean(0).flatten(), dim=0).item() > 1 - 1e-10


def test_the_methods_that_average_what_is_no_matrix_are_those_that_say_so() -> None:
    data_free = [n for n in algorithms() if kind(n) == "merge" and method_class(n) == "data-free" and n != "slerp"]
    deltas = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = {name for name in data_free if is_average(name, deltas) and not is_average(name, deltas[:, 0])}
    assert found == {name for name in data_free if of_matrices(name)} >= {"tsv_m", "iso_c", "iso_cts", "wudi", "cart"}
