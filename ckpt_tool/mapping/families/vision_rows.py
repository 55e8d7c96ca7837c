"""The rows of vision towers; those of language models are in :mod:`.megatron_rows`.

Sources: verl's Qwen2.5-VL for megatron-core (``verl/models/mcore/qwen2_5_vl``); Megatron-Bridge's
Qwen3-VL (``qwen_vl/qwen3_vl_bridge.py`` of 0.6.2).
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import Row, Vision

QWEN_VISION = Vision(
    rows=(
        Row("patch_embed.proj.weight", "vision_model.patch_embed.proj.weight"),
        Row(
            "merger.ln_q.weight",
            "vision_model.decoder.final_layernorm.weight",
            shape="vision",
        ),
        Row(
            "merger.mlp.0.weight",
            "vision_model.projection.encoder.linear_fc1.weight",
            shape="merged,merged",
        ),
        Row(
            "merger.mlp.0.bias",
            "vision_model.projection.encoder.linear_fc1.bias",
            shape="merged",
        ),
        Row(
            "merger.mlp.2.weight",
            "vision_model.projection.encoder.linear_fc2.weight",
            shape="hidden,merged",
        ),
        Row(
            "merger.mlp.2.bias",
            "vision_model.projection.encoder.linear_fc2.bias",
            shape="hidden",
        ),
    ),
    block=(
        Row("norm1.weight", "self_attention.linear_qkv.layer_norm_weight", shape="vision"),
        Row(
            "attn.qkv.weight",
            "self_attention.linear_qkv.weight",
            "stacked_qkv",
            shape="vision_qkv,vision",
        ),
        Row("attn.qkv.bias", "self_attention.linear_qkv.bias", "stacked_qkv", shape="vision_qkv"),
        Row("attn.proj.weight", "self_attention.linear_proj.weight", shape="vision,vision"),
        Row("attn.proj.bias", "self_attention.linear_proj.bias", shape="vision"),
        Row("norm2.weight", "mlp.linear_fc1.layer_norm_weight", shape="vision"),
        Row(
            "mlp.{gate,up}_proj.weight",
            "mlp.linear_fc1.weight",
            "gate_up",
            shape="vision_ffn,vision",
        ),
        Row("mlp.{gate,up}_proj.bias", "mlp.linear_fc1.bias", "gate_up", shape="vision_ffn"),
        Row("mlp.down_proj.weight", "mlp.linear_fc2.weight", shape="vision,vision_ffn"),
        Row("mlp.down_proj.bias", "mlp.linear_fc2.bias", shape="vision"),
    ),
)


def _merger(norm: str) -> tuple[Row, ...]:
    """Patches joined to a token, or what is added to one; ``norm``: the width of its norm."""
    return (
        Row("norm.weight", "patch_norm.weight", shape=norm),
        Row("norm.bias", "patch_norm.bias", shape=norm),
        Row("linear_fc1.weight", "linear_fc1.weight", shape="merged,merged"),
        Row("linear_fc1.bias", "linear_fc1.bias", shape="merged"),
        Row("linear_fc2.weight", "linear_fc2.weight", shape="hidden,merged"),
        Row("linear_fc2.bias", "linear_fc2.bias", shape="hidden"),
    )


QWEN3_VISION = Vision(
    prefix="model.visual.",
    rows=(
        Row("patch_embed.proj.weight", "vision_model.patch_embed.proj.weight"),
        Row("patch_embed.proj.bias", "vision_model.patch_embed.proj.bias", shape="vision"),
        Row("pos_embed.weight", "vision_model.pos_embed.weight", shape="positions,vision"),
        *(
            replace(row, hf=f"merger.{row.hf}", megatron=f"vision_model.merger.{row.megatron}")
            for row in _merger("vision")
        ),
    ),
    block=(
        Row("norm1.weight", "self_attention.linear_qkv.layer_norm_weight", shape="vision"),
        Row("norm1.bias", "self_attention.linear_qkv.layer_norm_bias", shape="vision"),
        *(row for row in QWEN_VISION.block if row.hf.startswith("attn.")),
        Row("norm2.weight", "mlp.linear_fc1.layer_norm_weight", shape="vision"),
        Row("norm2.bias", "mlp.linear_fc1.layer_norm_bias", shape="vision"),
        Row("mlp.linear_fc1.weight", "mlp.linear_fc1.weight", shape="vision_ffn,vision"),
        Row("mlp.linear_fc1.bias", "mlp.linear_fc1.bias", shape="vision_ffn"),
        Row("mlp.linear_fc2.weight", "mlp.linear_fc2.weight", shape="vision,vision_ffn"),
        Row("mlp.linear_fc2.bias", "mlp.linear_fc2.bias", shape="vision"),
    ),
    merger=_merger("merged"),
)
