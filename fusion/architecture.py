"""What config.json says of a model that its tensors do not: tied embeddings, and which weights are (in, out)."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion.artifacts import read_json
from fusion.checkpoint import shape
from fusion.folder import model_class

Config = Mapping[str, Any]

EMBEDDINGS = (
    *("shared", "embed_tokens", "wte", "word_embeddings", "word_embedding"),
    *("tokens_embed", "embed_in", "tok_embeddings"),
)
HEADS = (
    *("lm_head", "embed_out", "proj_out", "cls.predictions.decoder", "predictions.decoder", "lm_head.decoder"),
    *("vocab_projector", "generator_lm_head", "pred_layer.proj", "lm_loss"),
)
UNTIED_FROM = "untied_from"  # what `untie` writes into config.json
WRITES = re.compile("LMHead|DoubleHeads|ForCausalLM|ForConditionalGeneration|ForMaskedLM|ForPreTraining")
# transformers' Conv1D, the (in, out) form of a linear layer: the models that have it, and its names in them
CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"}
CONV1D_MODULES = {"c_attn", "q_attn", "c_proj", "c_fc"}
# Methods of PEFT that change what a model reads or weighs them anew for every input: no weights are the same
UNMERGEABLE = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT"),
    *("POLY", "XLORA", "LILY", "SHADOW"),
}
OF_TASK = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


def read_config(path: Path) -> Config:
    """config.json of a model folder, or beside a file; empty where there is none."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    found = read_json(file) if file.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{file}: got {type(found).__name__}, expected an object of settings")
    return found


def merge_adapter(folder: Path, adapter: Mapping[str, Any], base: Config) -> str:
    """How to make a whole model of an adapter that is more than W0 + s·B A, as the end of an error.

    adapter: its configuration; base: config.json of P. The class is P's, so that the names are too, but for an
    adapter that brings a head of its own.
    """
    if adapter["peft_type"] in UNMERGEABLE:
        return "it changes no weights once and for all, so that PEFT cannot merge it into a model either: leave it out"
    task = str(adapter.get("task_type"))
    auto = OF_TASK.get(task, "AutoModel")
    name = auto if task in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS") else model_class(base) or auto
    return (
        "merge it with PEFT first, into the model P that it adapts, and give NEW in its place: from peft import "
        f"PeftModel; from transformers import {name}; base = {name}.from_pretrained(P); "
        f"PeftModel.from_pretrained(base, {str(folder)!r}).merge_and_unload().save_pretrained(NEW)"
    )


def untie(config: Config) -> str:
    """How to give a tied P a head of its own, as the end of an error. The class is P's, so that the names are too.

    The new config.json says what it was made of, so that an adapter of P is known to be one of the new model.
    """
    name = model_class(config) or "AutoModelForCausalLM"
    return (
        "untie P and give the new folder as --pretrained: import torch; "
        f"from transformers import {name}; model = {name}.from_pretrained(P); "
        "model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False; "
        "head = model.get_output_embeddings(); "
        "[setattr(head, n, torch.nn.Parameter(p.detach().clone())) for n, p in list(head.named_parameters())]; "
        f"model.config.{UNTIED_FROM} = str(P); model.save_pretrained(UNTIED)"
    )


def is_embedding(name: str) -> bool:
    """Whether a tensor of that name is a table of word embeddings."""
    return _ends(name, EMBEDDINGS)


def is_table(config: Config, model: Mapping[str, Tensor], name: str) -> bool:
    """Whether a tensor of the model is a table of word embeddings: by its name, or else by its row for every word."""
    if name not in model or embedding(model) is not None:
        return is_embedding(name)
    sizes = {part["vocab_size"] for part in _parts(config) if "vocab_size" in part}
    return len(shape(model, name)) == 2 and shape(model, name)[0] in sizes


def is_head(name: str) -> bool:
    """Whether a tensor of that name writes words: the output embedding."""
    return _ends(name, HEADS)


def is_shared(name: str) -> bool:
    """Whether a tensor is the embedding that encoder and decoder share, as in T5 and BART."""
    return _ends(name, ("shared",))


def embedding(names: Iterable[str]) -> str | None:
    """The name of the table of word embeddings, where there is one."""
    found = [name for name in names if is_embedding(name)]
    return min(found, key=lambda name: (not is_shared(name), len(name)), default=None)


def is_tied(config: Config, model: Mapping[str, Tensor]) -> bool:
    """Whether the model writes words with its input embedding.

    Where the configuration says nothing, its type's default decides, which is not in the file: then a model
    that has to write words is tied if it stores no head, or one that equals the embedding.
    """
    if not config or not _writes(config):
        return False
    said = [part["tie_word_embeddings"] for part in _parts(config) if "tie_word_embeddings" in part]
    if said:
        return any(said)
    head, table = next(filter(is_head, model), None), embedding(model)
    return table is not None and (head is None or is_copy(model, head, table))


def is_copy(model: Mapping[str, Tensor], one: str, other: str) -> bool:
    """Whether two tensors of a model are equal."""
    return shape(model, one) == shape(model, other) and torch.equal(model[one], model[other])


def is_conv1d(config: Config, module: str, flag: bool) -> bool:
    """Whether a module's weight is (in, out); `flag` where the configuration does not name a type we know."""
    types = {part["model_type"] for part in _parts(config) if "model_type" in part}
    if not types or "auto_map" in config:
        return flag
    return bool(types & CONV1D_MODELS) and module.rpartition(".")[2] in CONV1D_MODULES


def _writes(config: Config) -> bool:
    """Whether the model has an output embedding; it is taken to where its class is not known."""
    names = config.get("architectures")
    return not names or any(WRITES.search(str(name)) for name in names)


def _parts(config: Config) -> Iterator[Config]:
    """The configuration, and those of its parts: `text_config`, `decoder` …"""
    yield config
    yield from (part for part in config.values() if isinstance(part, dict))


def _ends(name: str, modules: Iterable[str]) -> bool:
    module = name.removesuffix(".weight")
    return any(f".{module}".endswith(f".{end}") for end in modules)
