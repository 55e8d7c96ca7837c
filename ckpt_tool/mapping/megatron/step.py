"""What configs of Step-3.5 say in keys of their own, as released and as transformers 5 writes them.

Released lists may go on for the layers for multi-token prediction, which transformers has in lists
of their own. Source: ``configuration_step3p7.py`` of transformers 5.24.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields
from ckpt_tool.mapping.config import MTP_KEYS

_SHARE = "partial_rotary_factor"
_FULL, _SLIDING = "full_attention", "sliding_attention"


def find_step_kinds(text: Fields, layers: int) -> tuple[str, ...]:
    """The kind of attention of each layer; MappingError where that cannot be."""
    return _read_kinds(text, layers)[:layers]


def find_kinds_ahead(text: Fields, layers: int, ahead: int) -> tuple[str, ...]:
    """Of each layer for multi-token prediction; where nothing says it they see all.

    MappingError where that cannot be, or one of them has experts.
    """
    padded = list(_read_kinds(text, layers)[layers:])
    kinds = text.texts("mtp_layer_types") or padded or [_FULL] * ahead
    _require(text, "mtp_layer_types", kinds, ahead)
    if padded and padded != kinds:
        raise MappingError(
            f"{text.path}: mtp_layer_types is {', '.join(kinds[:9])}, but layer_types ends with"
            f" {', '.join(padded[:9])} for layers after num_hidden_layers"
        )
    mlps = text.texts("mtp_mlp_layer_types")
    listed = find_moe_list(text) or frozenset()
    if "sparse" in mlps or any(layers <= layer < layers + ahead for layer in listed):
        raise MappingError(
            f"{text.path}: a layer for multi-token prediction has experts; in Megatron those of a"
            " Step-3.5 have none"
        )
    return tuple(kinds)


def _read_kinds(text: Fields, layers: int) -> tuple[str, ...]:
    kinds = text.texts("layer_types") or [_FULL] * layers
    ahead = text.agreed_size(MTP_KEYS, 0)
    _require(text, "layer_types", kinds, layers, layers + ahead)
    return tuple(kinds)


def _require(text: Fields, key: str, kinds: list[str], *counts: int) -> None:
    if len(kinds) not in counts or not set(kinds) <= {_FULL, _SLIDING}:
        raise MappingError(
            f"{text.path}: {key} is {', '.join(kinds[:9])}, expected {_FULL} or {_SLIDING} for each"
            f" of {counts[0]} layers"
        )


def find_moe_list(text: Fields) -> frozenset[int] | None:
    """Which layers have experts, as a list or a text of numbers; None where nothing says it."""
    said = text.values.get("moe_layers_enum")
    if not isinstance(said, str):
        key = "moe_layers_enum" if text.values.get("moe_layers") is None else "moe_layers"
        return None if text.values.get(key) is None else frozenset(text.sizes(key))
    numbers = [part.strip() for part in said.split(",") if part.strip()]
    if not all(number.isdecimal() and len(number) < 10 for number in numbers):
        raise MappingError(f"{text.path}: moe_layers_enum is {said[:60]!r}, expected numbers")
    return frozenset(map(int, numbers))


def read_sliding_sizes(text: Fields, heads: int, groups: int, head: int) -> dict[str, int]:
    """The sizes of layers with a window by the words of the tables: the model's if none is said."""
    other = text.inside("attention_other_setting")
    if text.values.get("num_sliding_attention_heads") is not None or other.values:
        heads = text.size("num_sliding_attention_heads", other.size("num_attention_heads", heads))
        _require_heads(text, heads)
    groups = other.size("num_attention_groups", groups)
    head = other.size("head_dim", head)
    return {
        "sliding_heads": heads,
        "sliding_groups": groups,
        "sliding_head": head,
        "sliding_query": heads * head,
        "sliding_key": groups * head,
    }


def name_first_rotary(text: Fields) -> Fields:
    """The config with the rotary embedding of the first layer, where each layer has its own."""
    found = dict(text.values)
    for key, named in (("rope_theta", "rope_theta"), ("partial_rotary_factors", _SHARE)):
        values = found.get(key)
        if isinstance(values, list) and values:
            found[named] = values[0]
    return replace(text, values=found)


def _require_heads(text: Fields, heads: int) -> None:
    """MappingError where a layer with a window has other heads by itself: it is what counts."""
    layers = text.inside("per_layer_config")
    for layer in layers.values:
        own = layers.inside(layer).find_size("num_attention_heads")
        if own not in (None, heads):
            raise MappingError(
                f"{text.path}: per_layer_config.{layer}.num_attention_heads is {own}, but by"
                f" num_sliding_attention_heads or attention_other_setting it is {heads}"
            )
