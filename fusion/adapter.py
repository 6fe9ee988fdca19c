"""Models as PEFT adapters: LoRA read as the weights W0 + s·B A of the model that it adapts.

Hu et al., ICLR 2022, arXiv 2106.09685: s = α / r. Rank-stabilized (Kalajdzievski, arXiv 2312.03732): s = α / √r.
What would change the weights in any other way (DoRA, PiSSA's changed base …) is refused by its name.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusion.architecture import Config, is_conv1d, is_head, is_shared, is_table, is_tied, read_config, untie
from fusion.artifacts import read_json
from fusion.checkpoint import Checkpoint, is_float, shape
from fusion.finding import INDEX, NAMES
from fusion.low_rank import require_low_rank
from fusion.targets import absent, near, of_module

PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
WHOLE = ("model.safetensors", INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")  # in the order of preference
PARTS = re.compile(r"(model|pytorch_model|consolidated)\b.*\.(safetensors|bin|pth)|tf_model\.h5|flax_model\.msgpack")
FACTORS = re.compile(r"(?P<module>.+)\.lora_(?:(?P<factor>[AB])\.weight|embedding_(?P<lookup>[AB]))")


class LowRank(NamedTuple):
    """The update s·B A of one weight: the names of its factors, their scale, and whether it is (in, out)."""

    a: str
    b: str
    scale: float
    transposed: bool


class Adapter(Mapping[str, Tensor]):
    """The tensors of a model with a PEFT adapter, by the names of the model; computed when asked for.

    Adapted weights are float64, in which W0 + s·B A is exact: float32 would round away what is low-rank about it.
    Tensors that the adapter holds in full (`modules_to_save`, biases) replace the model's. Raises ValueError
    naming the tensor or the option if anything in the adapter is unknown or fits no tensor of the model, if it
    changes a tensor that the model uses twice, or lacks layers that its configuration names. model: config.json of
    the model that it adapts, where there is one; by default that beside the file of `base`.
    """

    def __init__(self, folder: str | Path, base: Mapping[str, Tensor], model: Config | None = None) -> None:
        self.path, self.base = Path(folder), base
        if model is None and isinstance(base, Checkpoint):
            model = read_config(base.path)
        self._config, folder = model or {}, self.path
        self._state = Checkpoint(folder / WEIGHTS)
        self.files = (folder / CONFIG, *self._state.files)
        config = read_json(folder / CONFIG)
        require_low_rank(config, folder / CONFIG, self._config)
        self._updates: dict[str, LowRank] = {}
        self._replaced: dict[str, str] = {}
        for key in self._state:
            self._place(key, config)
        if not self._updates and not self._replaced:
            raise ValueError(f"{folder / WEIGHTS} holds no tensor; expected the adapter's")
        adapted = self._updates.keys() | self._replaced.keys()
        for option, lacking in absent(config, base, adapted, self._config).items():
            if lacking:
                way = "write 'none' there for those of P" if option == "bias" else "name there only what it adapts"
                raise ValueError(
                    f"{folder / WEIGHTS} has nothing for {', '.join(lacking[:3])} ({len(lacking)} in all), which "
                    f"{option} in {CONFIG} names; save the adapter again, or {way}"
                )

    def __getitem__(self, name: str) -> Tensor:
        weight = self._state[self._replaced[name]] if name in self._replaced else self.base[name]
        if name not in self._updates:
            return weight
        update = self._updates[name]
        a, b = self._state[update.a].float().flatten(1), self._state[update.b].float().flatten(1)  # (r, in), (out, r)
        product = (b @ a).T if update.transposed else b @ a
        return torch.add(weight.double(), product.reshape(weight.shape), alpha=update.scale)

    def __contains__(self, name: object) -> bool:
        return name in self.base

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)

    def __repr__(self) -> str:
        return str(self.path)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without computing it."""
        return shape(self.base, name)

    def is_float(self, name: str) -> bool:
        """Whether a tensor is of a floating-point type, without computing it."""
        return is_float(self._state, self._replaced[name]) if name in self._replaced else is_float(self.base, name)

    def _place(self, key: str, config: Mapping[str, Any]) -> None:
        """Notes which tensor of the model `key` is for; ValueError where there is none of that name or shape."""
        match = FACTORS.fullmatch(key)
        module = (match["module"] if match else key).removeprefix(PREFIX).replace(".base_layer", "")
        name = f"{module}.weight" if match else module.replace(".modules_to_save.", ".")
        if not match and "lora_" in key:
            raise ValueError(f"{self.path}: {key!r} is no factor of a LoRA; expected only lora_A and lora_B")
        self._require_untied(key, name)
        if not key.startswith(PREFIX) or name not in self.base:
            other = near(name, self.base)
            hint = f", which has {other!r}" if other else ""
            raise ValueError(f"{self.path}: {key!r} adapts {name!r}; no such tensor in {self._model()}{hint}")
        if match is None:
            self._replaced[name] = key
            if self._state.shape(key) != shape(self.base, name):
                raise self._misfit(key, self._state.shape(key), name)
        elif (match["factor"] or match["lookup"]) == "A":
            self._updates[name] = self._low_rank(key, name, module, config, match["lookup"] is not None)
        elif self._other(key, "B", "A") not in self._state:
            raise ValueError(f"{self.path}: {key!r} comes without {self._other(key, 'B', 'A')!r}")

    def _low_rank(self, key: str, name: str, module: str, config: Mapping[str, Any], lookup: bool) -> LowRank:
        other = self._other(key, "A", "B")
        if other not in self._state:
            raise ValueError(f"{self.path}: {key!r} comes without {other!r}")
        a, b = self._state.shape(key), self._state.shape(other)
        rank = of_module(config.get("rank_pattern"), module, config["r"])
        if integers := [one for one in (key, other) if not self._state.is_float(one)]:
            raise ValueError(
                f"{self.path}: {integers[0]!r} holds integers, expected floats: quantized factors must be converted "
                "back first"
            )
        if a[:1] != (rank,) or b[1:2] != (rank,):
            raise ValueError(f"{self.path}: {key!r} is {a}, {other!r} is {b}; expected rank {rank} as in {CONFIG}")
        transposed = lookup or self._is_transposed(name, module, (b[0], *a[1:]), bool(config.get("fan_in_fan_out")))
        found = (*a[1:], b[0]) if transposed else (b[0], *a[1:])
        if found != shape(self.base, name) or not self.base[name].is_floating_point():
            raise self._misfit(key, found, name)
        alpha = of_module(config.get("alpha_pattern"), module, config["lora_alpha"])
        return LowRank(key, other, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), transposed)

    def _is_transposed(self, name: str, module: str, made: tuple[int, ...], flag: bool) -> bool:
        """Whether the weight is (in, out). PEFT decides so for each module, and then writes one flag for all."""
        weight = shape(self.base, name)
        if made == weight == made[::-1]:
            return is_conv1d(self._config, module, flag)
        return len(weight) == 2 and made[::-1] == weight

    def _require_untied(self, key: str, name: str) -> None:
        if is_shared(name) and name in self.base:
            raise ValueError(
                f"{self.path}: {key!r} changes {name!r}, which is tied in {self._model()}: encoder and decoder share "
                "it, and PEFT trains it in one place; train the adapter without it"
            )
        if (is_head(name) or is_table(self._config, self.base, name)) and is_tied(self._config, self.base):
            raise ValueError(
                f"{self.path}: {key!r} changes {name!r}, but input and output embedding are tied in {self._model()}, "
                f"and a merge would change both; {untie(self._config)}"
            )

    def _misfit(self, key: str, found: tuple[int, ...], name: str) -> ValueError:
        is_of = f"{self.base[name].dtype} {shape(self.base, name)} in {self._model()}"
        return ValueError(f"{self.path}: {key!r} makes a float {found} of {name!r}, which is {is_of}")

    def _model(self) -> str:
        return "the model in memory" if isinstance(self.base, dict) else repr(self.base)

    @staticmethod
    def _other(key: str, one: str, two: str) -> str:
        head, _, tail = key.rpartition("lora_")
        return f"{head}lora_{tail.replace(one, two, 1)}"


def is_adapter(path: Path) -> bool:
    """Whether `path` is the folder of a PEFT adapter; ValueError where a whole model is in it too."""
    if not (path / CONFIG).is_file():
        return False
    whole = next((path / name for name in WHOLE if (path / name).is_file()), None)
    whole = whole or next((file for file in sorted(path.iterdir()) if PARTS.fullmatch(file.name)), None)
    if whole is None:
        return True
    give = f"give {whole} for the whole model, or " if whole.name in NAMES else ""
    own = " and ".join(name for name in (CONFIG, WEIGHTS, "adapter_model.bin") if (path / name).is_file())
    raise ValueError(
        f"{path} holds a PEFT adapter ({CONFIG}) and a whole model ({whole.name}); expected one of them: {give}move "
        f"{own} into a folder of their own"
    )
