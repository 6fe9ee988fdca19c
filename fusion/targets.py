"""Which modules of a model a PEFT configuration names, by the rules of PEFT."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fusion.checkpoint import shape


def absent(config: Mapping[str, Any], base: Mapping[str, Tensor], adapted: Collection[str]) -> list[str]:
    """The modules of `base` that the list `target_modules` names, but of which the adapter has nothing.

    adapted: the tensors that it has something for. A name may also end that of a module which the adapter's class
    of model does not have (a pooler). So a module is missed only where the name is adapted nowhere, or where it
    is adapted in another layer. A regular expression in place of the list is not looked into.
    """
    targets = config.get("target_modules")
    if not isinstance(targets, list):
        return []
    having = {name.removesuffix(".weight") for name in adapted}
    places = {_place(module) for module in having}
    modules = [name.removesuffix(".weight") for name in base if name.endswith(".weight") and len(shape(base, name)) > 1]
    lacking = []
    for target in targets:
        named = [module for module in modules if _ends(module, [target]) and _is_chosen(module, target, config)]
        nowhere = not any(module in having for module in named)
        lacking += [m for m in named if m not in having and (nowhere or _place(m) in places)]
    return list(dict.fromkeys(lacking))


def of_module(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern, as PEFT matches them, that ends the module's name."""
    found = (value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, default)


def near(name: str, names: Iterable[str]) -> str | None:
    """A name that is longer or shorter by a prefix: the same tensor, of a model with or without a head."""
    return next((one for one in names if one.endswith(f".{name}") or name.endswith(f".{one}")), None)


def _is_chosen(module: str, target: str, config: Mapping[str, Any]) -> bool:
    """Whether PEFT adapts a module that a target names: it may be excluded, or be in a layer that is not asked for."""
    excluded = config.get("exclude_modules") or []
    if re.fullmatch(excluded, module) if isinstance(excluded, str) else _ends(module, excluded):
        return False
    layers = config.get("layers_to_transform")
    if layers is None or module == target:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found = filter(None, (re.match(rf".*\.{pattern}\.(\d+)\.", module) for pattern in patterns))
    layer = next(found, None)
    return layer is not None and int(layer[1]) in ([layers] if isinstance(layers, int) else layers)


def _place(module: str) -> str:
    """The module's name without the numbers of its layers."""
    return re.sub(r"\d+", "#", module)


def _ends(module: str, targets: Sequence[str]) -> bool:
    return any(module == target or module.endswith(f".{target}") for target in targets)
