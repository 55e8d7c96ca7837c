"""Rows of models that see or hear; towers are in :mod:`.vision_rows`, or transformers' own.

Sources: ``qwen_vl/``, of Megatron-Bridge 0.6.2; the classes of transformers 5.24.
"""

from __future__ import annotations

from ckpt_tool.mapping.families.megatron_form import MegatronRows, Row
from ckpt_tool.mapping.families.megatron_rows import DENSE, GROUPED, MOE
from ckpt_tool.mapping.families.vision_rows import QWEN3_VISION

_PACKED = (
    Row(
        "mlp.experts.gate_up_proj",
        "mlp.experts.experts.linear_fc1.weight",
        "packed_turned",
        shape="experts,hidden,two_expert_ffn",
        whole="experts,two_expert_ffn,hidden",
    ),
    Row(
        "mlp.experts.down_proj",
        "mlp.experts.experts.linear_fc2.weight",
        "packed_turned",
        shape="experts,expert_ffn,hidden",
        whole="experts,hidden,expert_ffn",
    ),
)
#: Experts of a layer are two tensors on the Hub, each turned.
PACKED_MOE = (*(row for row in MOE if "{e}" not in row.hf), *_PACKED)

QWEN3_VL_MOE = MegatronRows(
    GROUPED,
    DENSE,
    PACKED_MOE,
    flags={
        "qk_norm": True,
        "qkv_bias": ("attention_bias", False),
        "output_bias": ("attention_bias", False),
    },
    vision=QWEN3_VISION,
    trunk="model.language_model.",
)
