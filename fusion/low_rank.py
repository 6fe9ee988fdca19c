"""Which options of PEFT's LoRA leave it a low-rank update of weights, and which make it more."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion.architecture import Config, merge_adapter

# Of PEFT's configuration: what is read here, and what changes nothing about the weights. Anything else that is set
# is refused, so that an option of a later PEFT is never passed over.
READ = {"r", "lora_alpha", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "init_lora_weights"}
HARMLESS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("lora_dropout", "bias", "modules_to_save", "megatron_core", "qalora_group_size", "eva_config"),
}
INITIAL = (True, False, "gaussian", "eva", "orthogonal")  # the others change W0 itself, or freeze a factor


def require_low_rank(config: Mapping[str, Any], where: Path, model: Config) -> None:
    """ValueError for an adapter that is more than W0 + s·B A; it says how PEFT makes a whole model of that."""
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        got = config.get("peft_type") if isinstance(config, dict) else config
        raise ValueError(f"{where}: got peft_type {got!r}, expected 'LORA'")
    if more := _more(config):
        raise ValueError(f"{where}: {more}; {merge_adapter(where.parent, config, model)}")
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), int | float):
            raise ValueError(f"{where}: got {name} {config.get(name)!r}, expected a number")


def _more(config: Mapping[str, Any]) -> str | None:
    """What of an adapter is more than W0 + s·B A."""
    if config["peft_type"] != "LORA":
        return f"got peft_type {config['peft_type']!r}, expected 'LORA'"
    if config.get("init_lora_weights", True) not in INITIAL:
        return f"init_lora_weights {config['init_lora_weights']!r} changes the base model"
    unknown = next((name for name, value in config.items() if value and name not in READ | HARMLESS), None)
    return unknown and f"{unknown} is set, which is more than a low-rank update"
