"""Gated DeltaNet, that is linear attention, by config: which layers have it, and its sizes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields
from ckpt_tool.mapping.megatron.kinds import require_each

_LINEAR, _FULL = "linear_attention", "full_attention"
_LINEAR_KEYS = (
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
)
#: megatron-core has parts of these in ``torch_dist``, so that those who have all are others.
_SPELLED = re.compile(
    r"\.self_attention\.(?:(?P<slime>linear_attn)\.|(?P<module>norm)\.weight$"
    r"|in_proj(?:(?P<apart>_qkvz|_ba)|(?P<swift>))\.weight$)"
)
#: ms-swift's with ``USE_MCORE_GDN=0`` is transformers' module in attention's place.
_TRAINERS = {
    "slime": "slime",
    "module": "ms-swift, a module",
    "apart": "ms-swift, apart",
    "swift": "ms-swift",
}
#: What Qwen3-Next and Qwen3.5 have where their configs say nothing.
_INTERVAL = 4


def find_linear_kinds(text: Fields, layers: int) -> tuple[str, ...]:
    """The kind of each layer: linear or full attention.

    By ``layer_types``, or, where that is absent, every n-th layer has full attention.
    MappingError where the list is not of ``layers``, or of other kinds.
    """
    interval = text.size("full_attention_interval", _INTERVAL) or 1
    kinds = tuple(text.texts("layer_types")) or tuple(
        _LINEAR if (layer + 1) % interval else _FULL for layer in range(layers)
    )
    require_each(text, "layer_types", len(kinds), layers)
    strange = sorted(set(kinds) - {_LINEAR, _FULL})
    if strange:
        raise MappingError(
            f"{text.path}: layer_types has {', '.join(strange)}: not {_LINEAR} or {_FULL}"
        )
    if _LINEAR in kinds:
        _require_linear(text)
    return kinds


def spell_kinds(kinds: tuple[str, ...], keys: Collection[str]) -> tuple[str, ...]:
    """The kinds as the rows of the trainer are called that has ``keys``.

    Whose they are is said by how they call linear attention's input projections, or its norm.
    """
    found = {matched.lastgroup for matched in map(_SPELLED.search, keys) if matched}
    trainer = next((name for part, name in _TRAINERS.items() if part in found), None)
    if trainer is None:
        return kinds
    return tuple(f"{_LINEAR} of {trainer}" if kind == _LINEAR else kind for kind in kinds)


def _require_linear(text: Fields) -> None:
    """MappingError or FormatError where no such layer has the sizes of linear attention."""
    sizes = {key: text.size(key) for key in _LINEAR_KEYS}
    keys, values = sizes["linear_num_key_heads"], sizes["linear_num_value_heads"]
    if not all(sizes.values()) or values % keys:
        said = ", ".join(f"{key} {size}" for key, size in sizes.items())
        raise MappingError(
            f"{text.path}: {said}; expected numbers from 1 on, and as many value heads as key"
            " heads, or a multiple"
        )


def read_linear_sizes(text: Fields) -> dict[str, int]:
    """The size of each word that the tables have of linear attention."""
    keys, values, key, value, kernel = (text.size(name, 0) for name in _LINEAR_KEYS)
    return {
        "kernel": kernel,
        "linear_key_heads": keys,
        "linear_heads": values,
        "linear_head": value,
        "linear_key": keys * key,
        "linear_value": values * value,
        "linear_conv": 2 * keys * key + values * value,
        "linear_qkvz": 2 * (keys * key + values * value),
        "linear_ba": 2 * values,
    }


def is_linear(kind: str) -> bool:
    """Whether a layer of this kind has gated DeltaNet."""
    return kind.startswith(_LINEAR)


def describe_linear(kinds: Collection[str], sizes: Mapping[str, int]) -> dict[str, Any]:
    """What megatron-core's config says of a model with gated DeltaNet; nothing of any other."""
    if not any(map(is_linear, kinds)):
        return {}
    heads = sizes["linear_key_heads"]
    said = (heads, sizes["linear_heads"], sizes["linear_key"] // heads, sizes["linear_head"])
    found = dict(zip(_LINEAR_KEYS, (*said, sizes["kernel"]), strict=True))
    return {**found, "linear_attention_freq": [int(is_linear(kind)) for kind in kinds]}
