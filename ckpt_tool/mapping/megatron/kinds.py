"""Of which kinds the layers of a model are, as its config says: by a list, or a symbol for each.

Symbols are those of ``megatron/core/models/hybrid/hybrid_layer_allocation.py``; the lists those of
transformers, before and since 5.22.
"""

from __future__ import annotations

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields

#: What lists call a layer: its symbol in patterns.
_SYMBOLS = {
    "mamba": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "moe": "E",
    "mlp": "-",
}


def find_kinds(text: Fields, layers: int) -> tuple[str, ...]:
    """The entry of each layer in ``layer_types``; MappingError where not each layer has one.

    Where MiMo-V2 is on the Hub a list has a number for each.
    """
    kinds = tuple(text.texts("layer_types")) or tuple(
        "sliding_attention" if number else "full_attention"
        for number in text.sizes("hybrid_layer_pattern")
    )
    if len(kinds) != layers:
        raise MappingError(
            f"{text.path}: layer_types has {len(kinds)} entries, but there are {layers} layers"
        )
    return kinds


def find_symbols(text: Fields) -> tuple[str, ...]:
    """The symbol of each layer of a HybridModel: ``M``, ``*``, ``-`` or ``E``.

    MappingError where nothing says them, what says them does not agree, or one is unknown.
    """
    found = _read_symbols(text, ("layers_block_type", "layer_types"), "hybrid_override_pattern")
    layers = text.size("num_hidden_layers", len(found))
    if not found:
        raise MappingError(
            f"{text.path}: neither layers_block_type nor hybrid_override_pattern says of what kind"
            " the layers are"
        )
    if len(found) != layers:
        raise MappingError(
            f"{text.path}: of {len(found)} layers the kind is said, but num_hidden_layers is"
            f" {layers}"
        )
    return found


def find_symbols_ahead(text: Fields) -> tuple[str, ...]:
    """The same of a layer for multi-token prediction: attention and experts if nothing says it."""
    keys = ("mtp_layers_block_type",), "mtp_hybrid_override_pattern"
    return _read_symbols(text, *keys) or ("*", "E")


def _read_symbols(text: Fields, lists: tuple[str, ...], pattern: str) -> tuple[str, ...]:
    """By each key that is there; of lists the first."""
    listed = next((kinds for kinds in map(text.texts, lists) if kinds), [])
    symbols = text.find_text(pattern) or ""
    said = {"".join(_SYMBOLS.get(kind, "?") for kind in listed), symbols} - {""}
    unknown = [kind for kind in listed if kind not in _SYMBOLS]
    unknown += [symbol for symbol in symbols if symbol not in _SYMBOLS.values()]
    if unknown:
        raise MappingError(
            f"{text.path}: layers of the kind {unknown[0]!r}, expected {', '.join(_SYMBOLS)}, or"
            f" their symbols {' '.join(dict.fromkeys(_SYMBOLS.values()))}"
        )
    if len(said) > 1:
        raise MappingError(
            f"{text.path}: the kinds of layers are {' and '.join(sorted(said))}, by {lists[0]} and"
            f" {pattern}"
        )
    return tuple(said.pop()) if said else ()
