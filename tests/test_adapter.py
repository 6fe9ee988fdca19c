"""PEFT adapters as weights: what PEFT itself makes of them, and what is refused because it would be something else."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_vectors import Model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from fusion.adapter import CONFIG, WEIGHTS, Adapter
from fusion.artifacts import read_json, write_json
from fusion.vectors import TaskVectors

PREFIX = "base_model.model."


class Convolution(nn.Module):
    """Two convolutions, one of them of 1 × 1."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.thin = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 1)


def bert() -> nn.Module:
    sizes: dict[str, Any] = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)
    return BertModel(BertConfig(vocab_size=11, max_position_embeddings=6, **sizes))


def gpt2() -> nn.Module:
    return GPT2Model(GPT2Config(vocab_size=11, n_positions=6, n_embd=8, n_layer=1, n_head=2))


def base_of(model: nn.Module) -> Model:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def adapt(make: Callable[[], nn.Module], folder: Path, seed: int = 0, **options: Any) -> tuple[Model, Model]:
    """The tensors of a random model, and of the same with a random adapter, merged by PEFT; `folder` holds that."""
    torch.manual_seed(seed)
    model = make()
    base = base_of(model)
    adapted = get_peft_model(model, LoraConfig(**{"r": 2, "lora_alpha": 3, **options}))  # pyright: ignore[reportArgumentType]
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape)
    adapted.save_pretrained(str(folder))
    again = make()
    again.load_state_dict(base)
    loaded = PeftModel.from_pretrained(again, str(folder))  # pyright: ignore[reportArgumentType]
    return base, base_of(loaded.merge_and_unload())  # pyright: ignore[reportCallIssue]


ADAPTERS = {
    "plain": (bert, {"target_modules": ["query", "value"]}),
    "rank-stabilized": (bert, {"target_modules": ["query"], "use_rslora": True}),
    "all biases": (bert, {"target_modules": ["query"], "bias": "all"}),
    "own biases": (bert, {"target_modules": ["query"], "bias": "lora_only"}),
    "a module in full": (bert, {"target_modules": ["query"], "modules_to_save": ["pooler"]}),
    "embeddings": (bert, {"target_modules": ["word_embeddings"]}),
    "patterns": (
        bert,
        {
            "target_modules": ["query", "key"],
            "rank_pattern": {"layer.1.attention.self.query": 4},
            "alpha_pattern": {"key": 7, r"layer\.\d.attention.self.query": 5},
        },
    ),
    "rank-stabilized patterns": (
        bert,
        {"target_modules": ["query"], "use_rslora": True, "rank_pattern": {"0.attention.self.query": 4}},
    ),
    "transposed": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "convolutions": (Convolution, {"target_modules": ["wide", "thin"]}),
    "no initial zero": (bert, {"target_modules": ["query"], "init_lora_weights": False}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_reads_as_the_weights_that_peft_makes_of_it(kind: str, tmp_path: Path) -> None:
    make, options = ADAPTERS[kind]
    base, expected = adapt(make, tmp_path, **options)
    found = dict(Adapter(tmp_path, base))
    assert found.keys() == base.keys()
    changed = {name for name in base if not torch.equal(found[name].float(), base[name])}
    assert changed == {name for name in base if not torch.equal(expected[name], base[name])} and changed
    for name, tensor in found.items():
        assert torch.allclose(tensor.float(), expected[name], atol=1e-6), name


def test_the_task_vectors_of_an_adapter_have_its_rank_and_no_rounding(tmp_path: Path) -> None:
    base, _ = adapt(bert, tmp_path, target_modules=["query"])
    large = {name: 1000 * tensor for name, tensor in base.items()}
    name = "encoder.layer.0.attention.self.query"
    state = load_file(tmp_path / WEIGHTS)
    a, b = (state[f"{PREFIX}{name}.lora_{factor}.weight"].double() for factor in "AB")
    taus = TaskVectors(large, [Adapter(tmp_path, large)])
    found = {layer.name: layer.taus[0] for layer in taus.layers()}
    assert torch.allclose(found[f"{name}.weight"].double(), 1.5 * b @ a, atol=1e-8, rtol=1e-6)
    assert torch.linalg.matrix_rank(found[f"{name}.weight"], atol=1e-7) == 2
    assert not found["encoder.layer.0.attention.self.key.weight"].any()


def test_low_precision_factors_are_multiplied_in_single_precision(tmp_path: Path) -> None:
    write(tmp_path, {"w.lora_A.weight": torch.tensor([[1.0, 1 / 256]]), "w.lora_B.weight": torch.ones(2, 1)})
    halved = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file({name: tensor.contiguous() for name, tensor in halved.items()}, tmp_path / WEIGHTS)
    base = {"w.weight": torch.ones(2, 2, dtype=torch.bfloat16)}
    assert Adapter(tmp_path, base)["w.weight"].tolist() == [[2.0, 1 + 1 / 256]] * 2


def write(folder: Path, state: Model, **options: Any) -> Path:
    """An adapter of rank 1 and scale 1 that is written by hand."""
    save_file({PREFIX + name: tensor for name, tensor in state.items()}, folder / WEIGHTS)
    write_json(folder / CONFIG, {"peft_type": "LORA", "r": 1, "lora_alpha": 1} | options)
    return folder


FACTORS: Model = {"w.lora_A.weight": torch.ones(1, 3), "w.lora_B.weight": torch.ones(2, 1)}
BASE: Model = {"w.weight": torch.zeros(2, 3), "n": torch.tensor([1, 2])}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_type": "LOHA"}, r"adapter_config\.json: got peft_type 'LOHA', expected 'LORA'"),
        ({"use_dora": True}, "use_dora is set"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changes the base model"),
        ({"init_lora_weights": "olora"}, "'olora' changes the base model"),
        ({"trainable_token_indices": [0]}, "trainable_token_indices is set"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is set"),
        ({"an_option_of_next_year": 1}, "an_option_of_next_year is set"),
        ({"r": 2}, r"lora_A.weight' is \(1, 3\), .* expected rank 2"),
    ],
)
def test_what_is_more_than_a_low_rank_update_is_refused_by_its_name(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        Adapter(write(tmp_path, FACTORS, **options), BASE)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"w.lora_A.weight": torch.ones(1, 3)}, "without 'base_model.model.w.lora_B.weight'"),
        ({"w.lora_B.weight": torch.ones(2, 1)}, "without 'base_model.model.w.lora_A.weight'"),
        (FACTORS | {"w.lora_magnitude_vector": torch.ones(2)}, "'base_model.model.w.lora_magnitude_vector' is no"),
        (FACTORS | {"w.lora_B.bias": torch.ones(2)}, "'base_model.model.w.lora_B.bias' is no factor"),
        (FACTORS | {"head.weight": torch.ones(2)}, "'base_model.model.head.weight' adapts 'head.weight'; no such"),
        (FACTORS | {"n.lora_A.weight": torch.ones(1, 2)}, "adapts 'n.weight'; no such tensor"),
        (FACTORS | {"w.weight": torch.ones(2, 2)}, r"makes a float \(2, 2\) of 'w.weight'"),
        ({"w.lora_A.weight": torch.ones(3), "w.lora_B.weight": torch.ones(2)}, "expected rank 1"),
        ({}, "holds no tensor"),
    ],
)
def test_a_tensor_that_fits_nothing_is_refused_by_its_name(state: Model, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Adapter(write(tmp_path, state), BASE)


def test_a_model_that_has_the_tensor_under_a_longer_name_is_said_to(tmp_path: Path) -> None:
    base = {"bert.w.weight": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=r"adapts 'w\.weight'; no such tensor in .*, which has 'bert\.w\.weight'"):
        Adapter(write(tmp_path, FACTORS), base)


def test_quantized_weights_are_not_adapted(tmp_path: Path) -> None:
    base: dict[str, Tensor] = {"w.weight": torch.zeros(2, 3, dtype=torch.int8)}
    with pytest.raises(ValueError, match=r"which is torch\.int8"):
        Adapter(write(tmp_path, FACTORS), base)


def test_an_option_that_says_nothing_is_no_obstacle(tmp_path: Path) -> None:
    config = read_json(write(tmp_path, FACTORS, use_dora=False, loftq_config={}, of_next_year=None) / CONFIG)
    assert config["use_dora"] is False
    assert Adapter(tmp_path, BASE)["w.weight"].tolist() == [[1.0] * 3] * 2


def test_a_float64_model_is_not_modified_by_reading_its_adapter(tmp_path: Path) -> None:
    base, merged = adapt(bert, tmp_path, target_modules=["query"])
    base = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in base.items()}
    before = {name: tensor.clone() for name, tensor in base.items()}
    adapter = Adapter(tmp_path, base)
    for _ in range(2):
        assert all(torch.allclose(adapter[name].to(merged[name]), merged[name], atol=1e-6) for name in merged)
    assert all(torch.equal(base[name], before[name]) for name in before)


@pytest.mark.parametrize("name", ["r", "lora_alpha"])
def test_a_configuration_without_rank_or_alpha_is_refused(name: str, tmp_path: Path) -> None:
    base, _ = adapt(bert, tmp_path, target_modules=["query"])
    write_json(tmp_path / CONFIG, {key: value for key, value in read_json(tmp_path / CONFIG).items() if key != name})
    with pytest.raises(ValueError, match=f"got {name} None, expected a number"):
        Adapter(tmp_path, base)


# --- which weights are (in, out)


def gpt2_classifier() -> nn.Module:
    config = GPT2Config(vocab_size=11, n_positions=6, n_embd=8, n_layer=1, n_head=2, num_labels=8, pad_token_id=0)
    return GPT2ForSequenceClassification(config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [["attn.c_proj", "score"], ["c_attn", "mlp.c_proj", "score"]])
def test_each_module_of_gpt2_is_turned_as_its_class_has_it_whatever_the_one_flag_says(
    targets: list[str], tmp_path: Path
) -> None:
    base, expected = adapt(gpt2_classifier, tmp_path, target_modules=targets)
    for flag in (False, True):
        write_json(tmp_path / CONFIG, read_json(tmp_path / CONFIG) | {"fan_in_fan_out": flag})
        found = Adapter(tmp_path, base, {"model_type": "gpt2"})
        for name, tensor in found.items():
            assert torch.allclose(tensor.float(), expected[name], atol=1e-6), (name, flag)


SQUARE: Model = {"c_proj.lora_A.weight": torch.tensor([[1.0, 2.0]]), "c_proj.lora_B.weight": torch.ones(2, 1)}


@pytest.mark.parametrize(
    ("config", "flag", "is_turned"),
    [
        ({"model_type": "gpt2"}, False, True),
        ({"model_type": "gpt_bigcode"}, True, False),
        ({"decoder": {"model_type": "gpt2"}, "model_type": "vision-encoder-decoder"}, False, True),
        ({"model_type": "of_the_authors", "auto_map": {"AutoModel": "modeling.Model"}}, True, True),
        ({}, True, True),
        ({}, False, False),
    ],
)
def test_a_square_weight_is_turned_as_the_type_of_the_model_says_and_else_the_flag(
    config: dict[str, Any], flag: bool, is_turned: bool, tmp_path: Path
) -> None:
    adapter = Adapter(write(tmp_path, SQUARE, fan_in_fan_out=flag), {"c_proj.weight": torch.zeros(2, 2)}, config)
    product = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    assert torch.equal(adapter["c_proj.weight"].float(), product.T if is_turned else product)


def test_where_the_shape_fits_one_way_only_the_flag_does_not_matter(tmp_path: Path) -> None:
    for flag in (True, False):
        assert Adapter(write(tmp_path, FACTORS, fan_in_fan_out=flag), BASE)["w.weight"].shape == (2, 3)
    with pytest.raises(ValueError, match=r"makes a float \(2, 3\) of 'w.weight', which is torch.float32 \(2, 4\)"):
        Adapter(tmp_path, {"w.weight": torch.zeros(2, 4)})


# --- layers that are missing


LAYERS: Model = {f"layers.{i}.{name}.weight": torch.zeros(2, 3) for i in range(3) for name in ("q", "k", "norm.w")}
OF_ALL: Model = {f"layers.{i}.q.{key[2:]}": tensor.clone() for i in range(3) for key, tensor in FACTORS.items()}
OF_TWO: Model = {key: tensor for key, tensor in OF_ALL.items() if not key.startswith("layers.1")}


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"target_modules": ["q"]}, r"layers\.1\.q \(1 in all\)"),
        ({"target_modules": ["layers.1.q", "layers.0.q"]}, r"layers\.1\.q \(1 in all\)"),
        ({"target_modules": ["q", "k"]}, r"layers\.1\.q, layers\.0\.k, layers\.1\.k \(4 in all\)"),
        ({"target_modules": ["q"], "layers_to_transform": [0, 1]}, r"layers\.1\.q \(1 in all\)"),
    ],
)
def test_layers_that_the_configuration_names_and_the_file_lacks_are_an_error_that_names_them(
    options: dict[str, Any], missing: str, tmp_path: Path
) -> None:
    base = {f"model.{name}": tensor for name, tensor in LAYERS.items()}
    state = {f"model.{key}": tensor for key, tensor in OF_TWO.items()}
    message = missing.replace("layers", r"model\.layers") + r", which target_modules in adapter_config\.json names"
    options = options | {
        "target_modules": [name.replace("layers", "model.layers") for name in options["target_modules"]]
    }
    with pytest.raises(ValueError, match=f"has nothing for {message}"):
        Adapter(write(tmp_path, state, **options), base)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q"], "layers_to_transform": [0, 2]},
        {"target_modules": ["q"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
        {"target_modules": ["q"], "exclude_modules": ["layers.1.q"]},
        {"target_modules": ["q"], "exclude_modules": r".*\.1\.q"},
        {"target_modules": r".*\.[02]\.q"},
        {"target_modules": ["q", "of_another_model"], "layers_to_transform": [0, 2], "layers_pattern": ["h", "layers"]},
    ],
)
def test_layers_that_are_not_asked_for_are_not_missed(options: dict[str, Any], tmp_path: Path) -> None:
    base = {f"model.{name}": tensor for name, tensor in LAYERS.items()} | {"pooler.q.weight": torch.zeros(2, 3)}
    state = {f"model.{key}": tensor for key, tensor in OF_TWO.items()}
    assert Adapter(write(tmp_path, state, **options), base)["model.layers.2.q.weight"].all()


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"target_modules": r".*\.q"}, r"model\.layers\.1\.q \(1 in all\)"),
        ({"target_modules": r".*\.(q|k)"}, r"model\.layers\.\d\.., .* \(4 in all\)"),
        ({"target_modules": "all-linear"}, r"model\.layers\.1\.q \(1 in all\)"),
        ({"target_modules": ["q"], "layers_to_transform": []}, r"model\.layers\.1\.q \(1 in all\)"),
    ],
)
def test_layers_that_an_expression_matches_and_the_file_lacks_are_an_error(
    options: dict[str, Any], missing: str, tmp_path: Path
) -> None:
    base = {f"model.{name}": tensor for name, tensor in LAYERS.items()} | {"pooler.q.weight": torch.zeros(2, 3)}
    base = {name: tensor for name, tensor in base.items() if "norm" not in name}
    state = {f"model.{key}": tensor for key, tensor in OF_TWO.items()}
    with pytest.raises(ValueError, match=f"has nothing for {missing}, which target_modules in"):
        Adapter(write(tmp_path, state, **options), base)


def test_layers_are_counted_from_the_beginning_of_a_name_too(tmp_path: Path) -> None:
    options = {"target_modules": ["q"], "layers_to_transform": [0, 1], "layers_pattern": "layers"}
    with pytest.raises(ValueError, match=r"has nothing for layers\.1\.q \(1 in all\)"):
        Adapter(write(tmp_path, OF_TWO, **options), LAYERS)


def test_the_number_of_an_expert_is_not_taken_for_its_layer(tmp_path: Path) -> None:
    base = {f"model.layers.{i}.experts.{j}.q.weight": torch.zeros(2, 3) for i in range(2) for j in range(2)}
    state = {f"model.layers.1.experts.{j}.q.{key[2:]}": one.clone() for j in range(2) for key, one in FACTORS.items()}
    Adapter(write(tmp_path, state, target_modules=["q"], layers_to_transform=[1]), base)


@pytest.mark.parametrize("targets", [r".*\.(\d)\.q", r"model\.layers\.[02]\.q", r".*layers.*\.q", r".*q"])
def test_modules_that_an_expression_does_not_match_are_not_missed(targets: str, tmp_path: Path) -> None:
    base = {f"model.{name}": tensor for name, tensor in LAYERS.items()} | {"pooler.q.weight": torch.zeros(2, 3)}
    state = {f"model.{key}": tensor for key, tensor in (OF_TWO if "[02]" in targets else OF_ALL).items()}
    assert Adapter(write(tmp_path, state, target_modules=targets), base)["model.layers.2.q.weight"].all()


def test_an_expression_that_is_none_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"target_modules '\(q' is no regular expression"):
        Adapter(write(tmp_path, OF_ALL, target_modules="(q"), LAYERS)


def test_a_module_that_was_to_be_saved_in_full_and_is_not_there_is_an_error(tmp_path: Path) -> None:
    base = LAYERS | {"score.weight": torch.zeros(2, 3)}
    options = {"target_modules": ["q"], "modules_to_save": ["classifier", "score"]}
    Adapter(write(tmp_path, OF_ALL | {"score.weight": torch.ones(2, 3)}, **options), base)
    with pytest.raises(ValueError, match=r"has nothing for score\.weight \(1 in all\), which modules_to_save in"):
        Adapter(write(tmp_path, OF_ALL, **options), base)


def cut(folder: Path, unwanted: str) -> None:
    """Leaves out of the adapter's file what the expression finds."""
    state = load_file(folder / WEIGHTS)
    kept = {name: tensor for name, tensor in state.items() if not re.search(unwanted, name)}
    assert 0 < len(kept) < len(state)
    save_file(kept, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("option", "unwanted", "missing"),
    [
        ("all", r"\.bias$", r"embeddings\.LayerNorm\.bias, .* \(18 in all\)"),
        ("all", r"0\.intermediate\.dense\.bias", r"encoder\.layer\.0\.intermediate\.dense\.bias \(1 in all\)"),
        ("lora_only", r"1\..*\.bias$", r"encoder\.layer\.1\.attention\.self\.query\.bias \(1 in all\)"),
        ("lora_only", r"\.bias$", r"encoder\.layer\.0\.attention\.self\.query\.bias, .* \(2 in all\)"),
    ],
)
def test_trained_biases_that_the_file_lacks_are_an_error_that_names_them(
    option: str, unwanted: str, missing: str, tmp_path: Path
) -> None:
    base, _ = adapt(bert, tmp_path, target_modules=["query"], bias=option)
    cut(tmp_path, unwanted)
    with pytest.raises(ValueError, match=f"has nothing for {missing}, which bias in .* write 'none' there for"):
        Adapter(tmp_path, base)
    write_json(tmp_path / CONFIG, read_json(tmp_path / CONFIG) | {"bias": "none"})
    Adapter(tmp_path, base)


def test_the_biases_of_what_the_adapters_class_lacks_are_not_missed(tmp_path: Path) -> None:
    base, _ = adapt(bert, tmp_path, target_modules=["query"], bias="all")
    cut(tmp_path, r"pooler")
    Adapter(tmp_path, base, {"architectures": ["BertModel"]})


def t5(kind: Any = T5ForConditionalGeneration) -> nn.Module:
    sizes: dict[str, Any] = dict(d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2)
    return kind(T5Config(vocab_size=11, **sizes))


def clip() -> nn.Module:
    sizes = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)
    text: dict[str, Any] = dict(vocab_size=11, max_position_embeddings=6, **sizes)
    vision = dict(image_size=4, patch_size=2, **sizes)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


T5 = {"architectures": ["T5ForConditionalGeneration"]}


@pytest.mark.parametrize(
    ("make", "model", "options", "stack"),
    [
        (t5, T5, {"target_modules": ["q", "v"]}, "decoder"),
        (t5, T5, {"target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"}, "decoder"),
        (t5, T5, {"target_modules": "all-linear"}, "decoder"),
        (t5, T5, {"target_modules": r".*\.[qv]"}, "encoder"),
        (clip, {"architectures": ["CLIPModel"]}, {"target_modules": ["q_proj"], "bias": "all"}, "text_model"),
    ],
)
def test_a_whole_stack_of_layers_that_the_file_lacks_is_an_error(
    make: Callable[[], nn.Module], model: dict[str, Any], options: dict[str, Any], stack: str, tmp_path: Path
) -> None:
    base, _ = adapt(make, tmp_path, **options)
    Adapter(tmp_path, base, model)
    cut(tmp_path, stack)
    with pytest.raises(ValueError, match=rf"has nothing for {stack}\..*, which target_modules in"):
        Adapter(tmp_path, base, model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [["q", "v"], "all-linear"])
def test_an_adapter_of_the_encoder_alone_fits_the_model_with_a_decoder(targets: Any, tmp_path: Path) -> None:
    adapt(partial(t5, T5EncoderModel), tmp_path, target_modules=targets)
    base = base_of(t5())
    assert Adapter(tmp_path, base, T5).keys() == base.keys()


def test_an_adapter_of_one_tower_fits_the_model_of_both(tmp_path: Path) -> None:
    base, _ = adapt(clip, tmp_path, target_modules=["q_proj"], bias="all")
    cut(tmp_path, "text_model|projection")
    mapping = {"base_model_class": "CLIPVisionModel"}
    write_json(tmp_path / CONFIG, read_json(tmp_path / CONFIG) | {"auto_mapping": mapping})
    Adapter(tmp_path, base, {"architectures": ["CLIPModel"]})


@pytest.mark.parametrize("kind", ["DeepseekV3ForCausalLM", "Qwen3NextForCausalLM", "OfTomorrowForCausalLM"])
def test_layers_that_the_class_of_the_model_passes_over_are_not_missed(kind: str, tmp_path: Path) -> None:
    further = "model.layers.61" if "V3" in kind else "mtp.layers.0"
    base = {f"model.{name}": tensor for name, tensor in LAYERS.items()} | {f"{further}.q.weight": torch.zeros(2, 3)}
    state = {f"model.{key}": tensor for key, tensor in OF_ALL.items()}
    write(tmp_path, state, target_modules=["q"], task_type="CAUSAL_LM")
    Adapter(tmp_path, base, {"architectures": [kind], "auto_map": {}})


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_factors_that_are_no_floats_are_refused_by_name(dtype: torch.dtype, tmp_path: Path) -> None:
    state = FACTORS | {"w.lora_B.weight": torch.ones(2, 1).to(dtype)}
    with pytest.raises(ValueError, match=r"w\.lora_B\.weight' holds integers, expected floats"):
        Adapter(write(tmp_path, state), BASE)
