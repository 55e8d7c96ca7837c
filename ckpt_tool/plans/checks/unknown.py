"""Models that no release of megatron-core builds: known before a byte is written."""

from __future__ import annotations

from ckpt_tool.mapping.megatron.numbers import Numbers

#: By the flag of a family's rows.
_REASONS = {
    "streams": "no released megatron-core has its compressed attention and hyper-connections",
    "wide_heads": (
        "heads of values are as wide there as those of keys, and all layers have as many:"
        " trainers bring an attention of their own"
    ),
    "by_kind": (
        "megatron-core has no such layers: they are Megatron-Bridge's own, of two kinds of"
        " attention"
    ),
    "pools": "megatron-core has no layer with two pools of experts: trainers bring one",
}


def find_unknown(numbers: Numbers) -> str:
    """Why it builds no such model; empty where it may."""
    found = next((reason for flag, reason in _REASONS.items() if flag in numbers.flags), "")
    if not found and "patterned" in numbers.flags and not numbers.kinds:
        return "megatron-core has no layer with Mamba beside attention"
    return found
