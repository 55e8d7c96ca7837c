"""The families: which rows a model of each is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ckpt_tool.mapping.families.megatron_rows import (
    DENSE,
    GROUPED,
    LATENT,
    MIMO_MTP,
    MIXTRAL,
    MOE,
    MTP,
    SHARED,
    SHARED_GATE,
    Rows,
)
from ckpt_tool.mapping.families.vision_rows import QWEN_VISION, Vision

Flag = Literal[True] | tuple[str, bool]


@dataclass(frozen=True, slots=True)
class Family:
    """The rows of a family's layers; those outside of layers are the same for all.

    ``flags``: True, or the config key that decides and what holds where the key is absent.
    ``differing``: Megatron is always given a list of layer kinds, so that layers have keys of
    their own even where all are alike.
    """

    attention: Rows
    dense: Rows
    moe: Rows = ()
    mtp: Rows = ()
    flags: dict[str, Flag] = field(default_factory=dict)
    differing: bool = False
    mtp_prefix: str = "model.layers.{after}."
    mtp_repeats: bool = True
    vision: Vision | None = None


_LLAMA = Family(
    GROUPED,
    DENSE,
    flags={
        "qkv_bias": ("attention_bias", False),
        "output_bias": ("attention_bias", False),
        "mlp_bias": ("mlp_bias", False),
    },
)
_DEEPSEEK = Family(LATENT, DENSE, MOE + SHARED, MTP, differing=True)

_QWEN3_FLAGS: dict[str, Flag] = {
    "qk_norm": True,
    "qkv_bias": ("attention_bias", False),
    "output_bias": ("attention_bias", False),
}

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": Family(GROUPED, DENSE),
    "qwen2": Family(GROUPED, DENSE, flags={"qkv_bias": True}),
    "qwen3": Family(
        GROUPED,
        DENSE,
        flags=_QWEN3_FLAGS,
    ),
    "qwen2_moe": Family(GROUPED, DENSE, MOE + SHARED_GATE, flags={"qkv_bias": ("qkv_bias", True)}),
    "qwen3_moe": Family(
        GROUPED,
        DENSE,
        MOE,
        flags=_QWEN3_FLAGS,
    ),
    "mixtral": Family(GROUPED, (), MIXTRAL),
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "glm4_moe": Family(
        GROUPED,
        DENSE,
        MOE + SHARED,
        MTP,
        flags={"qkv_bias": ("attention_bias", False), "qk_norm": ("use_qk_norm", False)},
        differing=True,
    ),
    "mimo": Family(
        GROUPED,
        DENSE,
        mtp=MIMO_MTP,
        flags={"qkv_bias": True},
        mtp_prefix="model.mtp_layers.{number}.",
        mtp_repeats=False,
    ),
    "qwen2_5_vl": Family(GROUPED, DENSE, flags={"qkv_bias": True}, vision=QWEN_VISION),
}
