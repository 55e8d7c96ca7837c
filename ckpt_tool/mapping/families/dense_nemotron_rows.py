"""The rows of Nemotron without Mamba: norms with a bias, an MLP without a gate.

Norms count from one on both sides. Source: ``nemotron/nemotron_bridge.py`` of Megatron-Bridge.
"""

from __future__ import annotations

from ckpt_tool.mapping.families.megatron_form import MegatronRows, Row
from ckpt_tool.mapping.families.megatron_rows import DENSE, GROUPED

NEMOTRON = MegatronRows(
    (
        *GROUPED,
        Row("input_layernorm.bias", "self_attention.linear_qkv.layer_norm_bias", shape="hidden"),
    ),
    (
        *(row for row in DENSE if row.op == "same"),
        Row("post_attention_layernorm.bias", "mlp.linear_fc1.layer_norm_bias", shape="hidden"),
        Row("mlp.up_proj.weight", "mlp.linear_fc1.weight", shape="ffn,hidden"),
        Row("mlp.up_proj.bias", "mlp.linear_fc1.bias", when="mlp_bias", shape="ffn"),
    ),
    flags={
        "zero_centred": True,
        "layer_norm": True,
        "ungated": True,
        "qkv_bias": ("attention_bias", False),
        "output_bias": ("attention_bias", False),
        "mlp_bias": ("mlp_bias", False),
    },
    defaults={"partial_rotary_factor": 0.5},
)
