"""Which modules of a model a PEFT configuration names, by the rules of PEFT."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any

from torch import Tensor

from fusion.checkpoint import is_float, shape
from fusion.folder import unused

# How the names of the classes end that a task of PEFT's stands for
CLASSES = {
    "CAUSAL_LM": ("ForCausalLM", "LMHeadModel"),
    "SEQ_2_SEQ_LM": ("ForConditionalGeneration",),
    "SEQ_CLS": ("ForSequenceClassification",),
    "TOKEN_CLS": ("ForTokenClassification",),
    "QUESTION_ANS": ("ForQuestionAnswering",),
}


def absent(
    config: Mapping[str, Any], base: Mapping[str, Tensor], adapted: Collection[str], model: Mapping[str, Any]
) -> dict[str, list[str]]:
    """The modules and tensors of `base` that the adapter has nothing for, by the option that names them.

    adapted: the tensors that it has something for; model: config.json of the base, where there is one.
    """
    modules = [name.removesuffix(".weight") for name in base if name.endswith(".weight") and len(shape(base, name)) > 1]
    having = _Having({name.removesuffix(".weight") for name in adapted}, config, model)
    targets = config.get("target_modules")
    if isinstance(targets, str) and targets.lower() == "all-linear":
        matrices = [module for module in modules if len(shape(base, f"{module}.weight")) == 2]
        lacking = _of_all_linear(matrices, having, config)
    elif isinstance(targets, str):
        lacking = _of_expression(targets, modules, having, config)
    else:
        lacking = _of_list(targets or [], modules, having, config)
    saved = [f".{module}." for module in config.get("modules_to_save") or []]
    unsaved = [n for n in base if n not in adapted and is_float(base, n) and any(part in f".{n}" for part in saved)]
    biases = [name for name in base if name.endswith(".bias") and len(shape(base, name)) == 1]
    return {
        "target_modules": list(dict.fromkeys(lacking)),
        "modules_to_save": unsaved,
        "bias": _biases(config.get("bias"), biases, having),
    }


class _Having:
    """What an adapter has something for: modules by their names, and other tensors by theirs."""

    def __init__(self, names: Set[str], config: Mapping[str, Any], model: Mapping[str, Any]) -> None:
        self.names, self.model = names, model
        self.places, self.stacks = {_place(name) for name in names}, {_stack(name) for name in names}
        self.is_of_model = _is_of_class(config, model)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def misses(self, name: str) -> bool:
        """Whether the adapter should have that too: it has it of another layer, or nothing of a whole stack of layers.

        A stack is only missed where the adapter was made of the very class of model that the base is: that of one
        tower has nothing for the other. What the class itself passes over in a file is not missed.
        """
        is_of_layer, stack = _place(name) in self.places, _stack(name)
        is_of_stack = self.is_of_model and stack and stack not in self.stacks
        if name in self.names or not (is_of_layer or is_of_stack):
            return False
        patterns = unused(self.model)
        if patterns is None:  # nothing is known about that class
            return is_of_layer
        return not any(re.search(pattern, f"{name}.weight") for pattern in patterns)


def _is_of_class(config: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Whether an adapter was made of the class of model that the base is, by the class or the task that it names."""
    kinds = [str(name) for name in model.get("architectures") or ()]
    mapped = (config.get("auto_mapping") or {}).get("base_model_class")
    ends = CLASSES.get(str(config.get("task_type")), ())
    return mapped in kinds or any(kind.endswith(ends) for kind in kinds if ends)


def _biases(option: Any, biases: Sequence[str], having: _Having) -> list[str]:
    """The biases that were trained and are not there: all, or those of the modules that have factors."""
    if option in (None, "none"):
        return []
    beside = [name for name in biases if name.removesuffix(".bias") in having and name not in having]
    if option != "all":
        return beside
    is_none = not any(name in having for name in biases)
    return [name for name in biases if is_none or name in beside or having.misses(name)]


def _of_list(targets: Iterable[str], modules: Sequence[str], having: _Having, config: Mapping[str, Any]) -> list[str]:
    """The modules that the targets name and that are not there.

    A name may also end that of a module which the adapter's class of model does not have (a pooler). So a module is
    missed only where the name is adapted nowhere, or where the adapter has the like of it.
    """
    lacking = []
    for target in targets:
        named = [module for module in modules if _ends(module, [target]) and _is_chosen(module, target, config)]
        nowhere = not any(module in having for module in named)
        lacking += [module for module in named if nowhere or having.misses(module)]
    return lacking


def _of_expression(target: str, modules: Sequence[str], having: _Having, config: Mapping[str, Any]) -> list[str]:
    """The modules that the expression matches and that are not there, but in another layer, or others beside them."""
    beside = {place.rpartition(".")[0] for place in having.places} - {""}
    try:
        named = [module for module in modules if re.fullmatch(target, module) and not _is_excluded(module, config)]
    except re.error as error:
        raise ValueError(f"target_modules {target!r} is no regular expression ({error})") from error
    return [m for m in named if having.misses(m) or (m not in having and _place(m).rpartition(".")[0] in beside)]


def _of_all_linear(matrices: Sequence[str], having: _Having, config: Mapping[str, Any]) -> list[str]:
    """The modules with a matrix that are not there. Linear is what has the name of one that is adapted elsewhere."""
    linear = {name.rpartition(".")[2] for name in having.names}
    named = [module for module in matrices if module.rpartition(".")[2] in linear and not _is_excluded(module, config)]
    return [module for module in named if having.misses(module)]


def of_module(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern, as PEFT matches them, that ends the module's name."""
    found = (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, default)


def near(name: str, names: Iterable[str]) -> str | None:
    """A name that is longer or shorter by a prefix: the same tensor, of a model with or without a head."""
    return next((one for one in names if one.endswith(f".{name}") or name.endswith(f".{one}")), None)


def _is_chosen(module: str, target: str, config: Mapping[str, Any]) -> bool:
    """Whether PEFT adapts a module that a target names: it may be excluded, or be in a layer that is not asked for.

    Of several numbers in a name, as those of a layer and of its expert, versions of PEFT take the first or the last.
    """
    if _is_excluded(module, config):
        return False
    layers = config.get("layers_to_transform")
    if layers is None or layers == [] or module == target:
        return True
    patterns = config.get("layers_pattern") or []
    begins = [f"(^|{any_}\\.){one}" for one in _as_list(patterns) for any_ in (".*?", ".*")]
    begins = begins or [r".*?\.[^.]*", r".*\.[^.]*"]
    found = filter(None, (re.match(rf"{begin}\.(?P<layer>\d+)\.", module) for begin in begins))
    numbers = {int(layer["layer"]) for layer in found}
    return bool(numbers) and numbers <= set(_as_list(layers))


def _is_excluded(module: str, config: Mapping[str, Any]) -> bool:
    excluded = config.get("exclude_modules") or []
    return bool(re.fullmatch(excluded, module)) if isinstance(excluded, str) else _ends(module, excluded)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _place(module: str) -> str:
    """The module's name without the numbers of its layers."""
    return re.sub(r"\d+", "#", module)


def _stack(module: str) -> str:
    """What precedes the first number in the module's name: 'model.decoder.layers'; '' where there is none."""
    match = re.match(r"(.+?)\.\d+\.", module)
    return match[1] if match else ""


def _ends(module: str, targets: Sequence[str]) -> bool:
    return any(module == target or module.endswith(f".{target}") for target in targets)
