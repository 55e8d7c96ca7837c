"""Rows of families that ms-swift trains on Megatron, and Megatron-Bridge does not.

Sources: ``gpts/llm.py`` and, of ``mm_gpts/``, ``qwen.py``, ``llava.py`` and ``minicpmv4_6.py`` of
mcore_bridge 1.6.5; the classes of transformers 5.24, which has none of DeepSeek-MoE, Ovis 2.5 and
LLaVA-OneVision 1.5.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.gated_rows import QWEN3_5
from ckpt_tool.mapping.families.megatron_families import QWEN3
from ckpt_tool.mapping.families.megatron_form import Around, MegatronRows
from ckpt_tool.mapping.families.megatron_rows import DENSE, GROUPED, MOE, SHARED

ERNIE_DENSE = MegatronRows(
    GROUPED,
    DENSE,
    flags={
        "interleaved": True,
        "qkv_bias": ("use_bias", False),
        "output_bias": ("use_bias", False),
        "mlp_bias": ("use_bias", False),
    },
)
#: Released files say of biases what transformers, whose Llama it is, says by other keys.
INTERNLM3 = MegatronRows(
    GROUPED,
    DENSE,
    flags={
        "qkv_bias": ("qkv_bias", "attention_bias", False),
        "output_bias": ("bias", "mlp_bias", False),
        "mlp_bias": ("bias", "mlp_bias", False),
    },
)
DEEPSEEK_MOE = MegatronRows(
    GROUPED, DENSE, MOE + SHARED, flags={"qkv_bias": ("attention_bias", False)}, differing=True
)
MINICPM_V = replace(
    QWEN3_5,
    around=Around(
        trunk="model.language_model.",
        towers=("model.vision_tower.", "model.merger."),
        moved={"model.vision_tower.": "vision_tower.", "model.merger.": "merger."},
    ),
)
OVIS2_5 = MegatronRows(
    (),
    (),
    around=Around("llm.model.", "llm.", towers=("visual_tokenizer.", "vte."), inner=True),
)
LLAVA_ONEVISION = replace(QWEN3, around=Around(towers=("visual.",)))
