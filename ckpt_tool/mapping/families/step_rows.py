"""The rows of Step-3.5 and 3.7: a gate for each head, layers that differ in heads, packed experts.

Layers with a window have heads of another number, and layers for multi-token prediction are of
either kind and have a plain MLP. Each of those has a head on the Hub, which differs from the
model's; a model of Megatron's has one for all. Norms count from zero on both sides. Sources:
``models/step3p7`` of transformers 5.24, and ``stepfun/`` of Megatron-Bridge 0.6.2.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import Ahead, Around, MegatronRows, Row, Rows
from ckpt_tool.mapping.families.megatron_rows import DENSE, GROUPED, MTP

_EXPERTS = "mlp.experts.experts."


def _attention(kind: str) -> Rows:
    """``kind``: what the words of sizes begin with, and the operation."""
    return (
        GROUPED[0],
        Row(
            "self_attn.{q,k,v,g}_proj.weight",
            "self_attention.linear_qkv.weight",
            f"{kind}head_gates",
            shape=f"{kind}query,hidden {kind}key,hidden {kind}key,hidden {kind}heads,hidden",
        ),
        Row(
            "self_attn.q_norm.weight",
            "self_attention.q_layernorm.weight",
            when="qk_norm",
            shape=f"{kind}head",
        ),
        Row(
            "self_attn.k_norm.weight",
            "self_attention.k_layernorm.weight",
            when="qk_norm",
            shape=f"{kind}head",
        ),
        Row(
            "self_attn.o_proj.weight",
            "self_attention.linear_proj.weight",
            shape=f"hidden,{kind}query",
        ),
    )


_MOE = (
    Row("post_attention_layernorm.weight", "pre_mlp_layernorm.weight", shape="hidden"),
    Row("moe.gate.weight", "mlp.router.weight", shape="experts,hidden"),
    Row(
        "moe.router_bias",
        "mlp.router.expert_bias",
        when="router_bias",
        dtype="float32",
        shape="experts",
    ),
    Row(
        "moe.{gate,up}_proj.weight",
        f"{_EXPERTS}linear_fc1.weight",
        "packed_gate_up",
        shape="experts,expert_ffn,hidden",
        whole="experts,two_expert_ffn,hidden",
    ),
    Row(
        "moe.down_proj.weight",
        f"{_EXPERTS}linear_fc2.weight",
        "packed",
        shape="experts,hidden,expert_ffn",
    ),
    Row(
        "share_expert.{gate,up}_proj.weight",
        "mlp.shared_experts.linear_fc1.weight",
        "gate_up",
        shape="shared_ffn,hidden",
    ),
    Row(
        "share_expert.down_proj.weight",
        "mlp.shared_experts.linear_fc2.weight",
        shape="hidden,shared_ffn",
    ),
)
STEP3_5 = MegatronRows(
    _attention(""),
    DENSE,
    _MOE,
    Ahead(
        tuple(replace(row, hf=row.hf.replace("shared_", "transformer.shared_")) for row in MTP),
        repeats=False,
    ),
    Around(absent=(".transformer.shared_head.output.",)),
    attentions={"sliding_attention": _attention("sliding_")},
    flags={
        "qk_norm": ("use_qk_norm", True),
        "router_bias": ("use_moe_router_bias", True),
        "output_gate": True,
        "zero_centred": ("zero_centered", True),
        "shared_experts": True,
        "dense_ahead": True,
        "head_counts": True,
    },
    differing=True,
    kinds_by="attention_other_setting",
    defaults={"first_k_dense_replace": 3},
)
STEP3_7 = replace(
    STEP3_5,
    around=replace(
        STEP3_5.around,
        towers=("vision_model.", "vit_large_projector."),
        moved={"vit_large_projector.": "image_insert_embedding.align_projector."},
    ),
)
