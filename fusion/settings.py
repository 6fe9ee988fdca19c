"""The settings of a config.json that change what the same weights compute."""

import re
from typing import Any

from fusion.architecture import Config

MATTERS = re.compile(
    r"rope_(theta|type)|((low|high)_freq_|attention_|partial_rotary_)?factor|rotary_(pct|emb_base)|rope_local_base_freq"
    r"|.*norm.*eps.*|id2label|vocab_size|hidden_act(ivation)?|activation(_function)?|feed_forward_proj"
    r"|tie_word_embeddings|num_(\w+_)?heads|n_heads?|num_experts_per_tok|\w+_logit_softcapping"
)
ROTARY = ("rope_parameters", "rope_scaling")


def settings(config: Config, where: str = "") -> dict[str, Any]:
    """The settings that matter by their dotted names; those of rotary embeddings as every version has them."""
    found: dict[str, Any] = {f"{where}rope_type": "default"} if "rope_theta" in config else {}
    for key, value in config.items():
        if key in ROTARY:
            found |= _rotary(value, where)
        elif isinstance(value, dict) and key != "id2label":
            found |= settings(value, f"{where}{key}.")
        elif key == "id2label" and isinstance(value, dict):  # a label that is its number names nothing
            found |= {where + key: value} if any(f"LABEL_{n}" != label for n, label in value.items()) else {}
        elif MATTERS.fullmatch(key):
            found[where + key] = value
    return found


def _rotary(value: Any, where: str) -> dict[str, Any]:
    """The settings of rotary embeddings; of those that layers have by their kinds, the ones of full attention."""
    value = value or {}
    if nested := {key: one for key, one in value.items() if isinstance(one, dict)}:
        value = nested.get("full_attention", {})
        local = nested.get("sliding_attention", {}).get("rope_theta")
        value = value | ({} if local is None else {"rope_local_base_freq": local})
    named = {"rope_type" if key == "type" else key: one for key, one in value.items()}
    if named.get("rope_type") == "mrope":  # the name that older versions have for the sections
        named["rope_type"] = "default"
    return settings({"rope_type": "default", **named}, where)
