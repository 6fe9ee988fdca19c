"""How many GPUs a job asks for, and of which type, from the ways in which users say so."""

import os
import re
from collections.abc import Mapping
from typing import Any

GIVEN = "FUSION_GIVEN_GPUS"  # of the environment: 1 where a scheduler gives a job the GPUs that its resources say
TYPED = re.compile(r"(?:(?P<type>[^:,\s]*[^:,\s\d][^:,\s]*):)?(?P<count>\d+)")  # 2, or a100:2


def asked(resources: Mapping[str, Any]) -> str:
    """What `--gpus-per-node` is to say, such as "2" or "a100:2"; empty where `gres` says it, or no GPU is wanted.

    ValueError where it cannot be read, or where resources contradict each other.
    """
    count(resources)
    return "" if in_gres(resources) else _plain(resources)


def count(resources: Mapping[str, Any]) -> int:
    """The number of GPUs of `gres`, else of `gpus`, else of `gpu`. Raises the errors of `asked`."""
    counts: dict[str, int] = {}
    if (listed := in_gres(resources)) is not None:
        counts["gres"] = listed
    for name in ("gpus", "gpu"):
        if resources.get(name) not in (None, ""):
            counts[name] = _sum(name, str(resources[name]))
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name}={resources[name]}" for name in counts)
        raise ValueError(f"got {said}, which are different numbers of GPUs; expected one of them, or equal numbers")
    return next(iter(counts.values()), 0)


def given(resources: Mapping[str, Any]) -> int:
    """The number of GPUs that this process was given; 0 where no scheduler gives any. Raises the errors of `asked`."""
    return count(resources) if os.environ.get(GIVEN) else 0


def in_gres(resources: Mapping[str, Any]) -> int | None:
    """The number of GPUs that `gres` lists, None where it lists none."""
    found = None
    for item in str(resources.get("gres") or "").split(","):
        name, *rest = item.strip().removeprefix("gres:").removeprefix("gres/").split("(")[0].split(":")
        if name == "gpu":
            found = (found or 0) + (int(rest[-1]) if rest and rest[-1].isdigit() else 1)
    return found


def _plain(resources: Mapping[str, Any]) -> str:
    """What `gpus`, else `gpu` with the type `gpu_model`, says."""
    if not count(resources):
        return ""
    if resources.get("gpus") not in (None, ""):
        return str(resources["gpus"])
    model, number = str(resources.get("gpu_model") or ""), str(resources["gpu"])
    return f"{model}:{number}" if model and ":" not in number else number


def _sum(name: str, text: str) -> int:
    """The GPUs of "2", "a100:2" or "a100:1,v100:1"."""
    found = [TYPED.fullmatch(item.strip()) for item in text.split(",")]
    if not all(found):
        raise ValueError(f'{name}: got {text!r}, expected a number of GPUs, or types with numbers such as "a100:2"')
    return sum(int(item["count"]) for item in found if item)
