"""Gemma 4 by config: of which kind the attention of each layer is, and of which sizes.

Layers with a window and global ones have heads of their own. Global ones may take keys for values,
and the last so many layers the keys and values of an earlier one, with an MLP twice as wide.
Sources: ``configuration_gemma4.py`` of transformers 5.24, which writes ``per_layer_config``, where
released configs have ``global_head_dim`` and ``num_global_key_value_heads``; of what has a place in
Megatron, ``gemma4_provider.py`` of Megatron-Bridge 0.6.2.
"""

from __future__ import annotations

from collections.abc import Collection

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields, require_object
from ckpt_tool.mapping.megatron.blocks import Block, read_blocks
from ckpt_tool.mapping.megatron.sizes import find_groups, find_head_dim

_SLIDING, _FULL = "sliding_attention", "full_attention"
#: What the kinds of layers end with whose keys are values, and that take both from another layer.
_TIED, _SHARED = ", keys as values", ", shared"
#: Where nothing says the kinds, every so many layers one is global; those then have so wide heads.
_EVERY, _GLOBAL_HEAD = 6, 512


def find_shared_kinds(text: Fields, layers: int) -> tuple[str, ...]:
    """The kind of each layer: ``sliding_attention`` or ``full_attention``, and what of it is tied.

    The last layer is global, whatever is said. MappingError for what none can be, and for what
    Megatron-Bridge has no layers for.
    """
    kinds = text.texts("layer_types") or [
        _FULL if (layer + 1) % _EVERY == 0 else _SLIDING for layer in range(layers)
    ]
    if len(kinds) != layers or not set(kinds) <= {_SLIDING, _FULL}:
        raise MappingError(
            f"{text.path}: layer_types is {', '.join(kinds[:9])}, expected {_SLIDING} or {_FULL}"
            f" for each of {layers} layers"
        )
    kinds[-1:] = [_FULL] if kinds else []
    shared = text.size("num_kv_shared_layers", 0)
    own = kinds[: max(layers - shared, 0)]
    if shared > layers or set(own) != set(kinds):
        raise MappingError(
            f"{text.path}: num_kv_shared_layers is {shared} of {layers} layers: some of these have"
            " no earlier layer of their kind to take keys and values from"
        )
    _require_layers(text, shared)
    tied = {_FULL: _TIED} if text.find_bool("attention_k_eq_v") else {}
    ends = [tied.get(kind, "") for kind in own] + [_SHARED] * shared
    return tuple(kind + end for kind, end in zip(kinds, ends, strict=True))


def _require_layers(text: Fields, shared: int) -> None:
    """MappingError for experts together with what Megatron-Bridge has in other layers only."""
    if not text.find_bool("enable_moe_block"):
        return
    said = {
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": text.size("hidden_size_per_layer_input", 0),
    }
    for key, size in said.items():
        if size:
            raise MappingError(
                f"{text.path}: {key} is {size} beside enable_moe_block: Megatron-Bridge's layers"
                " with experts have no such thing"
            )
    if not text.size("num_experts", 0):
        raise MappingError(f"{text.path}: enable_moe_block is true, but there is no num_experts")


def find_blocks(text: Fields, kinds: tuple[str, ...], flags: frozenset[str]) -> tuple[Block, ...]:
    """What each layer has of its own, in a family where that is so; else nothing."""
    if "by_kind" in flags:
        return _read_heads(text, kinds)
    if "blocks" in flags:
        return read_blocks(text, text.size("num_hidden_layers"), text.size("num_attention_heads"))
    return ()


def _read_heads(text: Fields, kinds: tuple[str, ...]) -> tuple[Block, ...]:
    """The groups and heads of each layer, and how wide its MLP is.

    MappingError where layers of a kind differ: Megatron-Bridge stacks them.
    """
    ffn = text.size("intermediate_size")
    wide = 2 * ffn if text.find_bool("use_double_wide_mlp") else ffn
    found: list[Block] = []
    said: dict[str, tuple[int, int]] = {}
    every_groups, every_head = find_groups(text), find_head_dim(text)
    for layer, kind in enumerate(kinds):
        own = _read_own(text, layer, kind)
        groups = own.size("num_key_value_heads", every_groups)
        head = own.size("head_dim", every_head)
        base = kind.partition(",")[0]
        if said.setdefault(base, (groups, head)) != (groups, head):
            raise MappingError(
                f"{text.path}: layers of the kind {base} have other heads than one another, by"
                f" per_layer_config (layer {layer}: {groups} of width {head})"
            )
        found.append(Block(groups, wide if kind.endswith(_SHARED) else ffn, head))
    return tuple(found)


def _read_own(text: Fields, layer: int, kind: str) -> Fields:
    """What is said of one layer, in the words that are used for all."""
    if text.values.get("per_layer_config") is not None:
        own = text.object("per_layer_config").get(str(layer), {})
        return Fields(require_object(own, text.path), text.path)
    if kind.startswith(_SLIDING):
        return Fields({}, text.path)
    tied = text.find_bool("attention_k_eq_v")
    groups = text.find_size("num_global_key_value_heads") if tied else None
    head = text.size("global_head_dim", _GLOBAL_HEAD)
    return Fields({"head_dim": head, "num_key_value_heads": groups}, text.path)


def keep_given(kinds: tuple[str, ...], trunk: str, names: Collection[str]) -> tuple[str, ...]:
    """The kinds of a model with these tensors on the Hub: of released ones each layer has keys.

    Those that nothing reads become Megatron's, whose model does not read them either.
    """
    return tuple(
        _keep_own(kind, f"{trunk}layers.{layer}.self_attn.", names)
        for layer, kind in enumerate(kinds)
    )


def _keep_own(kind: str, attention: str, names: Collection[str]) -> str:
    if not kind.endswith(_SHARED) or f"{attention}k_proj.weight" not in names:
        return kind
    kind = kind.removesuffix(_SHARED)
    return kind + _TIED if kind == _FULL and f"{attention}v_proj.weight" not in names else kind


def name_attention(kind: str) -> str:
    """What Megatron-Bridge calls the attention of such a layer in checkpoints."""
    return f"self_attention_{'sliding' if kind.startswith(_SLIDING) else 'global'}"
