"""Which modules of a model a PEFT configuration names, by the rules of PEFT."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any

from torch import Tensor

from fusion.checkpoint import is_float, shape


def absent(config: Mapping[str, Any], base: Mapping[str, Tensor], adapted: Collection[str]) -> dict[str, list[str]]:
    """The modules and tensors of `base` that the adapter has nothing for, by the option that names them.

    adapted: the tensors that it has something for.
    """
    having = {name.removesuffix(".weight") for name in adapted}
    modules = [name.removesuffix(".weight") for name in base if name.endswith(".weight") and len(shape(base, name)) > 1]
    targets = config.get("target_modules")
    if isinstance(targets, str):
        lacking = _of_expression(targets, modules, having, config)
    else:
        lacking = _of_list(targets or [], modules, having, config)
    saved = [f".{module}." for module in config.get("modules_to_save") or []]
    unsaved = [n for n in base if n not in adapted and is_float(base, n) and any(part in f".{n}" for part in saved)]
    return {"target_modules": list(dict.fromkeys(lacking)), "modules_to_save": unsaved}


def _of_list(targets: Iterable[str], modules: Sequence[str], having: Set[str], config: Mapping[str, Any]) -> list[str]:
    """The modules that the targets name and that are not there.

    A name may also end that of a module which the adapter's class of model does not have (a pooler). So a module is
    missed only where the name is adapted nowhere, or where it is adapted in another layer.
    """
    places = {_place(module) for module in having}
    lacking = []
    for target in targets:
        named = [module for module in modules if _ends(module, [target]) and _is_chosen(module, target, config)]
        nowhere = not any(module in having for module in named)
        lacking += [m for m in named if m not in having and (nowhere or _place(m) in places)]
    return lacking


def _of_expression(target: str, modules: Sequence[str], having: Set[str], config: Mapping[str, Any]) -> list[str]:
    """The modules that the expression matches and that are not there, but are in another layer, or others beside them.

    'all-linear' does not say what is linear, so that of it only what another layer has is missed.
    """
    places = {_place(module) for module in having}
    if target.lower() == "all-linear":
        target, beside = ".*", set[str]()
    else:
        beside = {place.rpartition(".")[0] for place in places} - {""}
    try:
        named = [module for module in modules if re.fullmatch(target, module) and not _is_excluded(module, config)]
    except re.error as error:
        raise ValueError(f"target_modules {target!r} is no regular expression ({error})") from error
    return [m for m in named if m not in having and (_place(m) in places or _place(m).rpartition(".")[0] in beside)]


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


def _ends(module: str, targets: Sequence[str]) -> bool:
    return any(module == target or module.endswith(f".{target}") for target in targets)
