"""``config.json`` -> the few numbers that the rules of a family need."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields
from ckpt_tool.mapping.config import EXPERT_KEYS, MTP_KEYS, ModelConfig
from ckpt_tool.mapping.families.megatron_form import Around, MegatronRows
from ckpt_tool.mapping.families.table import FAMILIES, find_family
from ckpt_tool.mapping.megatron.blocks import Block
from ckpt_tool.mapping.megatron.kinds import (
    find_kinds,
    find_symbols,
    find_symbols_ahead,
    require_each,
)
from ckpt_tool.mapping.megatron.linear import is_linear
from ckpt_tool.mapping.megatron.moe_layers import find_moe_layers
from ckpt_tool.mapping.megatron.own_kinds import OWN_KINDS
from ckpt_tool.mapping.megatron.radio import read_radio
from ckpt_tool.mapping.megatron.shared_kv import find_blocks
from ckpt_tool.mapping.megatron.sizes import (
    SHARED_KEYS,
    find_groups,
    find_head_dim,
    read_sizes,
    read_text,
)
from ckpt_tool.mapping.megatron.step import find_kinds_ahead


@dataclass(frozen=True)
class Numbers:
    """``moe``: which layers have experts. ``flags``: which optional rows are there.

    ``kinds``: that of each layer's attention, in a family that has several; of a family that is
    always a HybridModel the symbol of each layer. ``mtp_kinds``: there, those of the layers that
    are one for multi-token prediction. ``ahead``: elsewhere, the kind of attention of each of those
    layers, where they differ. ``blocks``: what layers have of their own, in a family where
    they have sizes of their own.

    ``sizes``: the words of the tables' shapes, those that the config gives.

    ``heads``, ``groups`` and ``head_dim`` are those of plain grouped attention (in a family with
    latent attention nothing uses them).
    """

    layers: int
    heads: int
    groups: int
    head_dim: int
    experts: int
    moe: frozenset[int]
    mtp: int
    flags: frozenset[str]
    sizes: dict[str, int]
    vocab_size: int
    padded_vocab_size: int
    vision_layers: int = 0
    vision_heads: int = 0
    vision_groups: int = 0
    vision_mergers: int = 0
    kinds: tuple[str, ...] = ()
    mtp_kinds: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    ahead: tuple[str, ...] = ()

    def at(self, layer: int) -> Numbers:
        """Those of one layer: flags say what is there of it."""
        if not self.blocks:
            return self
        block = self.blocks[layer]
        head = block.head_dim or self.head_dim
        sizes = self.sizes | block.count_sizes(self.heads, head)
        flags = self.flags | block.find_parts()
        return replace(self, groups=block.groups, head_dim=head, sizes=sizes, flags=flags)

    @property
    def hybrid_pattern(self) -> str:
        """The layers of a HybridModel, a symbol each: ``hybrid_layer_allocation.py`` of 0.19.

        ``D``, ``+`` and ``*`` are sparse, latent and plain attention, ``G`` gated DeltaNet, ``E``
        and ``-`` experts and a plain MLP; what follows a ``/`` is a layer for multi-token
        prediction.
        """
        if self.kinds and "patterned" in self.flags:
            return "".join(self.kinds) + ("/" + "".join(self.mtp_kinds)) * self.mtp
        attention = "D" if "sparse" in self.flags else "+" if "latent" in self.flags else "*"
        linear = {i for i, kind in enumerate(self.kinds) if is_linear(kind)}
        mlp = ["E" if i in self.moe else "-" for i in range(self.layers)]
        layers = [("G" if i in linear else attention) + mlp[i] for i in range(self.layers)]
        ahead = attention + ("-" if "dense_ahead" in self.flags else mlp[-1])
        return "".join(layers) + f"/{ahead}" * self.mtp


def require_rows(config: ModelConfig) -> MegatronRows:
    """Megatron's rows of the config's family; MappingError lists the families that have some."""
    rows = config.family.megatron
    if rows is None:
        supported = [name for name, family in FAMILIES.items() if family.megatron]
        raise MappingError(
            f"{config.folder / 'config.json'}: model_type {config.model_type!r} has no table of"
            f" megatron-core names; supported: {', '.join(supported)}",
            hint="A family is a few rows of a table: 'A new model family' in CONTRIBUTING.md says"
            " which.",
        )
    other = rows.around.other
    if other is not None and rows.around.part not in config.raw:
        return replace(rows, around=other)
    return _surround(rows, config) if rows.around.inner else rows


def _surround(rows: MegatronRows, config: ModelConfig) -> MegatronRows:
    """The language model's rows by its own model type, and around them what ``rows`` say."""
    kind = config.text.get("model_type")
    inner = find_family(kind).megatron if isinstance(kind, str) else None
    if inner is None or inner.around.sees:
        raise MappingError(
            f"{config.path}: the language model of this {config.model_type} is of model_type"
            f" {kind!r}, which has no table of megatron-core names"
        )
    return replace(
        inner,
        mtp=replace(inner.mtp, prefix=_surround_ahead(rows.around, inner.mtp.prefix)),
        around=replace(rows.around, ends=inner.around.ends),
        defaults=inner.defaults | rows.defaults,
    )


def _surround_ahead(around: Around, prefix: str) -> str:
    """What is before the names of layers for multi-token prediction, in the model or beside it."""
    inside = prefix.removeprefix("model.")
    return (around.head if inside == prefix else around.trunk) + inside


def read_numbers(config: ModelConfig, vocab_multiple: int = 1) -> Numbers:
    """Read the numbers; FormatError names a key that is missing or is no number.

    Megatron's vocabulary is padded to a multiple of ``vocab_multiple``.
    """
    family = require_rows(config)
    text = read_text(family, config)
    kinds = _find_kinds(family, text)
    layers = len(kinds) or text.size("num_hidden_layers")
    if text.texts("layer_types") and not family.is_patterned:
        require_each(text, "layer_types", len(text.texts("layer_types")), layers, padded=True)
    heads = text.size("num_attention_heads")
    vocab = text.size("vocab_size")
    experts = text.agreed_size(EXPERT_KEYS, 0)
    moe = find_moe_layers(text, layers) if family.moe and experts else frozenset[int]()
    mtp = text.agreed_size(MTP_KEYS, 0) if family.mtp.rows else 0
    ahead: tuple[str, ...] = ()
    if kinds and family.is_patterned:
        if text.find_bool("mtp_use_repeated_layer"):
            mtp = min(mtp, 1)
        moe = frozenset(layer for layer, kind in enumerate(kinds) if kind == "E")
        ahead = find_symbols_ahead(text) if mtp else ()
    vision = Fields(config.raw, config.path).inside("vision_config")
    seen, eyes = _read_vision(family.around, vision)
    flags = _find_flags(family, text, tied=bool(config.tied))
    if vision.values.get("separate_video_embedder"):
        flags |= {"video_embedder"}
    return Numbers(
        layers=layers,
        heads=heads,
        groups=find_groups(text),
        head_dim=find_head_dim(text),
        experts=experts if moe or "E" in ahead else 0,
        moe=moe,
        mtp=mtp,
        sizes=read_sizes(text, vision),
        flags=flags,
        vocab_size=vocab,
        padded_vocab_size=-(-vocab // vocab_multiple) * vocab_multiple,
        vision_layers=seen,
        vision_heads=eyes,
        vision_groups=vision.size("num_key_value_heads", 0) if family.around.vision else 0,
        vision_mergers=len(vision.sizes("deepstack_visual_indexes")) if family.around.vision else 0,
        kinds=kinds,
        mtp_kinds=ahead,
        blocks=find_blocks(text, kinds, flags),
        ahead=find_kinds_ahead(text, layers, mtp) if "head_counts" in family.flags else (),
    )


def _read_vision(around: Around, vision: Fields) -> tuple[int, int]:
    """Layers and heads of the tower, if it has rows."""
    if around.vision is None:
        return 0, 0
    if around.has_radio:
        return read_radio(vision)
    keys = ("depth", "num_hidden_layers"), ("num_heads", "num_attention_heads")
    layers, heads = (vision.agreed_size(names) for names in keys)
    return layers, heads


def _find_kinds(family: MegatronRows, text: Fields) -> tuple[str, ...]:
    if not family.attentions and not family.apart:
        return ()
    if family.is_patterned:
        return find_symbols(text)
    return OWN_KINDS.get(family.kinds_by, find_kinds)(text, text.size("num_hidden_layers"))


def _find_flags(family: MegatronRows, text: Fields, *, tied: bool) -> frozenset[str]:
    values = text.values
    rank = bool(values.get("q_lora_rank"))
    found = {
        "untied": not tied,
        "low_query": rank,
        "plain_query": not rank,
        "latent": bool(values.get("kv_lora_rank")),
        "shared_experts": bool(text.agreed_size(SHARED_KEYS, 0)),
        "shared_gate": any("mlp.shared_experts.gate_weight" in row.megatron for row in family.moe),
        "expert_bias": any(row.megatron.endswith("router.expert_bias") for row in family.moe),
    }
    for flag, source in family.flags.items():
        if source is True:
            found[flag] = True
            continue
        *keys, default = source
        found[flag] = bool(values.get(text.agree(*keys), default))
    if family.packs_either_way:
        found["unpacked"] = not found.get("packed", False)
    return frozenset(flag for flag, holds in found.items() if holds)
