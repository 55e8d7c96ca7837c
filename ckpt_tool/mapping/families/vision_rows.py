"""The rows of vision towers; those of language models are in :mod:`.megatron_rows`.

Source: verl's Qwen2.5-VL for megatron-core (``verl/models/mcore/qwen2_5_vl``).
"""

from __future__ import annotations

from ckpt_tool.mapping.families.megatron_form import Row, Vision

QWEN_VISION = Vision(
    rows=(
        Row("visual.patch_embed.proj.weight", "vision_model.patch_embed.proj.weight"),
        Row(
            "visual.merger.ln_q.weight",
            "vision_model.decoder.final_layernorm.weight",
            shape="vision",
        ),
        Row(
            "visual.merger.mlp.0.weight",
            "vision_model.projection.encoder.linear_fc1.weight",
            shape="merged,merged",
        ),
        Row(
            "visual.merger.mlp.0.bias",
            "vision_model.projection.encoder.linear_fc1.bias",
            shape="merged",
        ),
        Row(
            "visual.merger.mlp.2.weight",
            "vision_model.projection.encoder.linear_fc2.weight",
            shape="hidden,merged",
        ),
        Row(
            "visual.merger.mlp.2.bias",
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
