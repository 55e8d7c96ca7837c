"""Lightning attention, as the config of Ling 2.5 says it: which layers have it."""

from __future__ import annotations

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields

_LIGHTNING, _LATENT = "lightning_attention", "full_attention"
#: What configs of Ling 3 say, and of no other.
_OF_LING_3 = ("short_conv_kernel_size", "kda_safe_gate", "kda_lower_bound")


def find_lightning_kinds(text: Fields, layers: int) -> tuple[str, ...]:
    """The kind of each layer: the last of each group has latent attention, and so has the rest.

    Source: ``BailingMoeV2_5DecoderLayer`` in ``modeling_bailing_moe_v2_5.py`` of inclusionAI.
    MappingError for Ling 3, and for what cannot be.
    """
    if found := [key for key in _OF_LING_3 if key in text.values]:
        raise MappingError(
            f"{text.path}: {found[0]} is of Ling 3, whose layers have Kimi delta attention, and"
            " gates after latent attention: no release of megatron-core, Megatron-Bridge or"
            " ms-swift has them",
            hint="Ling 2.5, which has the same model_type, is supported.",
        )
    every = text.size("layer_group_size")
    width = text.size("num_attention_heads") * text.size("head_dim")
    norms = text.size("group_norm_size")
    if not every or not norms or width % norms:
        raise MappingError(
            f"{text.path}: layer_group_size {every}, group_norm_size {norms}; expected numbers from"
            f" 1 on, the second one of which divides {width} (num_attention_heads x head_dim)"
        )
    rest = layers // every * every
    return tuple(
        _LATENT if (layer + 1) % every == 0 or layer >= rest else _LIGHTNING
        for layer in range(layers)
    )


def is_lightning(kind: str) -> bool:
    """Whether a layer of this kind has lightning attention."""
    return kind == _LIGHTNING
