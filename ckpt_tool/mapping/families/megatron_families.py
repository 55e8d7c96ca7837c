"""What the layers of each family are made of in megatron-core: rows of :mod:`.megatron_rows`."""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import Ahead, Around, Flag, MegatronRows
from ckpt_tool.mapping.families.megatron_rows import (
    DENSE,
    ERNIE_BIAS,
    GROUPED,
    LATENT,
    MIMO_MTP,
    MIXTRAL,
    MIXTRAL_BIAS,
    MOE,
    MTP,
    ROUTER_BIAS,
    SHARED,
    SHARED_GATE,
    WIDE_NORMS,
)
from ckpt_tool.mapping.families.vision_rows import QWEN3_VISION, QWEN_VISION

LLAMA = MegatronRows(
    GROUPED,
    DENSE,
    flags={
        "qkv_bias": ("attention_bias", False),
        "output_bias": ("attention_bias", False),
        "mlp_bias": ("mlp_bias", False),
    },
)
_QWEN3_FLAGS: dict[str, Flag] = {
    "qk_norm": True,
    "qkv_bias": ("attention_bias", False),
    "output_bias": ("attention_bias", False),
}
MISTRAL = MegatronRows(GROUPED, DENSE)
QWEN2 = MegatronRows(GROUPED, DENSE, flags={"qkv_bias": True})
QWEN3 = MegatronRows(GROUPED, DENSE, flags=_QWEN3_FLAGS)
QWEN3_MOE = MegatronRows(GROUPED, DENSE, MOE, flags=_QWEN3_FLAGS)
MIXTRAL_MOE = MegatronRows(GROUPED, (), MIXTRAL)
DEEPSEEK = MegatronRows(LATENT, DENSE, MOE + SHARED + ROUTER_BIAS, Ahead(MTP), differing=True)
DEEPSEEK_V2 = MegatronRows(LATENT, DENSE, MOE + SHARED, differing=True)
QWEN2_MOE = MegatronRows(GROUPED, DENSE, MOE + SHARED_GATE, flags={"qkv_bias": ("qkv_bias", True)})
GLM4_MOE = MegatronRows(
    GROUPED,
    DENSE,
    MOE + SHARED + ROUTER_BIAS,
    Ahead(MTP),
    flags={"qkv_bias": ("attention_bias", False), "qk_norm": ("use_qk_norm", False)},
    differing=True,
)
DOTS1 = MegatronRows(GROUPED, DENSE, MOE + SHARED + ROUTER_BIAS, flags=_QWEN3_FLAGS, differing=True)
ERNIE = MegatronRows(
    GROUPED,
    DENSE,
    MOE + SHARED + ERNIE_BIAS,
    flags={"interleaved": True},
    differing=True,
    around=Around(absent=("model.mtp_",)),
)
OLMOE = MegatronRows(GROUPED + WIDE_NORMS, (), MOE, flags={"wide_norms": True})
MINIMAX_M2 = MegatronRows(
    GROUPED + WIDE_NORMS, (), MIXTRAL + MIXTRAL_BIAS, flags={"wide_norms": True}
)
MIMO = MegatronRows(
    GROUPED,
    DENSE,
    mtp=Ahead(MIMO_MTP, prefix="model.mtp_layers.{number}.", repeats=False),
    flags={"qkv_bias": True},
)
QWEN2_5_VL = MegatronRows(
    GROUPED,
    DENSE,
    flags={"qkv_bias": True},
    around=Around(vision=QWEN_VISION, towers=("visual.",)),
)
QWEN2_VL = replace(QWEN2_5_VL, around=Around(towers=("visual.",)))
QWEN3_VL = MegatronRows(
    GROUPED,
    DENSE,
    flags=_QWEN3_FLAGS,
    around=Around(
        trunk="model.language_model.",
        vision=QWEN3_VISION,
        towers=("model.visual.",),
        moved={"model.visual.": "visual."},
        native=True,
    ),
)
MISTRAL3 = MegatronRows(
    GROUPED,
    DENSE,
    around=Around(
        trunk="language_model.model.",
        head="language_model.",
        towers=("vision_tower.", "multi_modal_projector."),
    ),
)
