"""Of which kinds the layers of a model are, as its config says: by a list, or a symbol for each.

Symbols are those of ``megatron/core/models/hybrid/hybrid_layer_allocation.py``; the lists those of
transformers, before and since 5.22.
"""

from __future__ import annotations

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.config import MTP_KEYS

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
    numbers = text.sizes("hybrid_layer_pattern")
    kinds = text.texts("layer_types")
    if kinds or not numbers:
        require_each(text, "layer_types", len(kinds), layers)
    if numbers:
        require_each(text, "hybrid_layer_pattern", len(numbers), layers)
    said = ("sliding_attention" if number else "full_attention" for number in numbers)
    return tuple(kinds or said)


def require_each(text: Fields, key: str, count: int, layers: int, *, padded: bool = False) -> None:
    """MappingError where the list ``key`` has ``count`` entries, not one for each layer.

    ``padded``: those for multi-token prediction may have one too.
    """
    most = layers + (text.agreed_size(MTP_KEYS, 0) if padded else 0)
    if not layers <= count <= most:
        raise MappingError(
            f"{text.path}: {key} has {count_noun(count, 'layer')}, but num_hidden_layers is"
            f" {layers}"
        )


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
            f"{text.path}: of {count_noun(len(found), 'layer')} the kind is said, but"
            f" num_hidden_layers is {layers}"
        )
    return found


def find_symbols_ahead(text: Fields) -> tuple[str, ...]:
    """The same of a layer for multi-token prediction: attention and experts if nothing says it."""
    keys = ("mtp_layers_block_type",), "mtp_hybrid_override_pattern"
    return _read_symbols(text, *keys) or ("*", "E")


def _read_symbols(text: Fields, lists: tuple[str, ...], pattern: str) -> tuple[str, ...]:
    """By each key that is there."""
    said_by = {key: kinds for key in lists if (kinds := text.texts(key))}
    symbols = text.find_text(pattern) or ""
    said = {"".join(_SYMBOLS.get(kind, "?") for kind in listed) for listed in said_by.values()}
    said |= {symbols} - {""}
    unknown = [kind for listed in said_by.values() for kind in listed if kind not in _SYMBOLS]
    unknown += [symbol for symbol in symbols if symbol not in _SYMBOLS.values()]
    if unknown:
        raise MappingError(
            f"{text.path}: layers of the kind {unknown[0]!r}, expected {', '.join(_SYMBOLS)}, or"
            f" their symbols {' '.join(dict.fromkeys(_SYMBOLS.values()))}"
        )
    if len(said) > 1:
        raise MappingError(
            f"{text.path}: the kinds of layers are {' and '.join(sorted(said))}, by"
            f" {' and '.join((*said_by, *([pattern] if symbols else [])))}"
        )
    return tuple(said.pop()) if said else ()
