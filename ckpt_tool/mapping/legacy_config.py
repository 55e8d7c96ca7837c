"""Keys that a ``config.json`` of transformers 5 lacks for transformers 4 and vLLM.

transformers 5 moved some values; 4.57 then silently uses its defaults (a rope theta of 10000, 128
experts). The old keys are added beside the new ones, which stay, so both versions read the same
model. Measured by comparing every attribute and the logits of 41 configs between 5.23 and 4.57.
"""

from __future__ import annotations

from typing import Any

from ckpt_tool.mapping.families.family import Legacy
from ckpt_tool.mapping.families.table import find_family

_MOVED_OUT = ("rope_theta", "partial_rotary_factor")


def add_legacy_keys(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``config`` with the old keys added, in nested configs too; nothing is replaced."""
    result = {
        key: add_legacy_keys(value)
        if key.endswith("_config") and isinstance(value, dict)
        else value
        for key, value in config.items()
    }
    for key, value in _find_legacy_keys(config).items():
        result.setdefault(key, value)
    return result


def _find_legacy_keys(config: dict[str, Any]) -> dict[str, Any]:
    legacy = find_family(str(config.get("model_type", ""))).legacy
    added: dict[str, Any] = {}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and rope:
        if all(value is None or isinstance(value, dict) for value in rope.values()):
            added |= _pick_rope(legacy, rope)
        elif rope.get("rope_type") != "axial":  # vision towers, unknown to transformers 4
            added |= _flatten_rope(legacy, rope)
    if legacy.expert_count and "num_local_experts" in config:
        added[legacy.expert_count] = config["num_local_experts"]
    if isinstance(config.get("dtype"), str):
        added["torch_dtype"] = config["dtype"]
    return added


def _flatten_rope(legacy: Legacy, rope: dict[str, Any]) -> dict[str, Any]:
    added = {key: rope[key] for key in _MOVED_OUT if key in rope}
    # transformers 5 prefers rope_scaling to rope_parameters where both are there, so it must
    # never be written without the theta it then needs.
    if "rope_theta" in rope:
        added["rope_scaling"] = _make_scaling(legacy, rope)
    return added


def _pick_rope(legacy: Legacy, rope: dict[str, Any]) -> dict[str, Any]:
    full, sliding = rope.get("full_attention"), rope.get("sliding_attention")
    if not legacy.local_rope or not full or not sliding:
        return {}
    return {
        "rope_theta": full.get("rope_theta"),
        "rope_local_base_freq": sliding.get("rope_theta"),
        "rope_scaling": _make_scaling(legacy, full),
    }


def _make_scaling(legacy: Legacy, rope: dict[str, Any]) -> dict[str, Any] | None:
    """The value of the old ``rope_scaling`` key; None where positions are not scaled."""
    left = {key: value for key, value in rope.items() if key not in _MOVED_OUT}
    if left.get("rope_type", "default") == "default" and left.keys() <= {"rope_type"}:
        return None
    if legacy.longrope_only and left.get("rope_type") == "longrope":
        factors = ("short_factor", "long_factor")
        return {"type": "longrope"} | {key: left[key] for key in factors if key in left}
    return left
