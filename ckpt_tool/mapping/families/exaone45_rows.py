"""The rows of EXAONE 4.5: EXAONE 4 that sees, with a tower whose queries share keys and values.

Source: ``exaone/exaone45`` of Megatron-Bridge 0.6.2.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.gemma_rows import EXAONE4
from ckpt_tool.mapping.families.megatron_form import Around, Row, Vision
from ckpt_tool.mapping.families.megatron_rows import TRANSFORMERS_MTP
from ckpt_tool.mapping.families.vision_rows import QWEN_VISION

_MERGER = "vision_model.merger."
_VISION = Vision(
    prefix="model.visual.",
    rows=(
        Row("patch_embed.proj.weight", "vision_model.patch_embed.proj.weight"),
        Row("merger.ln_q.weight", f"{_MERGER}patch_norm.weight", shape="vision"),
        Row("merger.mlp.0.weight", f"{_MERGER}linear_fc1.weight", shape="merged,merged"),
        Row("merger.mlp.0.bias", f"{_MERGER}linear_fc1.bias", shape="merged"),
        Row("merger.mlp.2.weight", f"{_MERGER}linear_fc2.weight", shape="hidden,merged"),
        Row("merger.mlp.2.bias", f"{_MERGER}linear_fc2.bias", shape="hidden"),
    ),
    block=QWEN_VISION.block,
)
EXAONE4_5 = replace(
    EXAONE4,
    mtp=TRANSFORMERS_MTP,
    around=Around(trunk="model.language_model.", vision=_VISION),
)
