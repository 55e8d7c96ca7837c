"""Families with experts whose names or layouts on the Hub are their own.

Sources: GPT-OSS, Hunyuan-V3, Sarvam: the classes of transformers 5.24 and its
``conversion_mapping``; Ling and Ring 2: ``modeling_bailing_moe_v2.py`` of their repositories. What
of these is in which Megatron tensor: Megatron-Bridge 0.6.2 (``gpt_oss``, ``hy_v3``, ``bailing``,
``sarvam``).
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import Ahead, Around, Flag, MegatronRows, Row, Rows
from ckpt_tool.mapping.families.megatron_rows import (
    DENSE,
    GROUPED,
    LATENT,
    MOE,
    MTP,
    ROUTER_BIAS,
    SHARED,
    TRANSFORMERS_MTP,
)


def _rename(rows: Rows, old: str, new: str) -> Rows:
    """Rows that have another name on the Hub, or another part of one."""
    return tuple(replace(row, hf=row.hf.replace(old, new)) for row in rows)


_EXPERTS = "mlp.experts.experts."
SINKS = (Row("self_attn.sinks", "self_attention.core_attention.softmax_offset", shape="heads"),)
_GPT_OSS_EXPERTS = (
    Row("post_attention_layernorm.weight", "pre_mlp_layernorm.weight", shape="hidden"),
    Row("mlp.router.weight", "mlp.router.weight", shape="experts,hidden"),
    Row("mlp.router.bias", "mlp.router.bias", shape="experts"),
    Row(
        "mlp.experts.gate_up_proj",
        f"{_EXPERTS}linear_fc1.weight",
        "alternating",
        shape="experts,hidden,two_expert_ffn",
        whole="experts,two_expert_ffn,hidden",
    ),
    Row(
        "mlp.experts.gate_up_proj_bias",
        f"{_EXPERTS}linear_fc1.bias",
        "alternating",
        shape="experts,two_expert_ffn",
    ),
    Row(
        "mlp.experts.down_proj",
        f"{_EXPERTS}linear_fc2.weight",
        "packed_turned",
        shape="experts,expert_ffn,hidden",
        whole="experts,hidden,expert_ffn",
    ),
    Row("mlp.experts.down_proj_bias", f"{_EXPERTS}linear_fc2.bias", shape="experts,hidden"),
)
GPT_OSS = MegatronRows(
    GROUPED + SINKS,
    (),
    _GPT_OSS_EXPERTS,
    flags={
        "qkv_bias": ("attention_bias", True),
        "output_bias": ("attention_bias", True),
        "mlp_bias": True,
        "sinks": True,
        "quick_geglu": True,
    },
    defaults={"rope_theta": 150000.0},
)

#: What a layer for multi-token prediction ends with, in families that call it as Megatron does.
_FINAL_NORM_MTP = Ahead(_rename(MTP, "shared_head.norm.", "final_layernorm."), repeats=False)
HY_V3 = MegatronRows(
    GROUPED,
    DENSE,
    _rename(MOE, "mlp.gate.", "mlp.router.gate.")
    + _rename(SHARED, "mlp.shared_experts.", "mlp.shared_mlp.")
    + _rename(ROUTER_BIAS, "mlp.gate.e_score_correction_bias", "mlp.expert_bias"),
    _FINAL_NORM_MTP,
    flags={
        "qk_norm": True,
        "qkv_bias": ("attention_bias", False),
        "output_bias": ("attention_bias", False),
        "mlp_bias": ("mlp_bias", False),
    },
    differing=True,
)

#: Norms of queries and keys, as Ling calls them.
LING_NORMS = (
    Row(
        "attention.query_layernorm.weight",
        "self_attention.q_layernorm.weight",
        when="qk_norm",
        shape="head",
    ),
    Row(
        "attention.key_layernorm.weight",
        "self_attention.k_layernorm.weight",
        when="qk_norm",
        shape="head",
    ),
)
_STACKED = (
    Row("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight", shape="hidden"),
    Row(
        "attention.query_key_value.weight",
        "self_attention.linear_qkv.weight",
        "grouped_qkv",
        shape="query_key_value,hidden",
    ),
    Row(
        "attention.query_key_value.bias",
        "self_attention.linear_qkv.bias",
        "grouped_qkv",
        "qkv_bias",
        shape="query_key_value",
    ),
    *LING_NORMS,
    Row("attention.dense.weight", "self_attention.linear_proj.weight", shape="hidden,query"),
)
_STACKED_EXPERTS = (
    MOE + SHARED + _rename(ROUTER_BIAS, "mlp.gate.e_score_correction_bias", "mlp.gate.expert_bias")
)
_STACKED_FLAGS: dict[str, Flag] = {
    "qk_norm": ("use_qk_norm", True),
    "qkv_bias": ("use_qkv_bias", False),
}
BAILING_V2 = MegatronRows(
    _STACKED,
    DENSE,
    _STACKED_EXPERTS,
    _FINAL_NORM_MTP,
    flags=_STACKED_FLAGS,
    differing=True,
    around=Around(ends={"embed_tokens": "word_embeddings"}),
)
#: What Ling 2 is called in its ``config.json``, as Ling 1 is, which has neither norms nor biases.
BAILING = replace(
    BAILING_V2,
    moe=tuple(
        replace(row, when="expert_bias") if row.megatron.endswith("expert_bias") else row
        for row in _STACKED_EXPERTS
    ),
    flags=_STACKED_FLAGS
    | {
        "qk_norm": ("use_qk_norm", False),
        "expert_bias": ("moe_router_enable_expert_bias", False),
    },
)
SARVAM_MOE = replace(
    BAILING_V2, mtp=Ahead(), flags=_STACKED_FLAGS | {"qkv_bias": ("attention_bias", False)}
)
EXAONE_MOE = MegatronRows(
    GROUPED,
    DENSE,
    MOE + SHARED + _rename(ROUTER_BIAS, "mlp.gate.", "mlp."),
    TRANSFORMERS_MTP,
    flags={"qk_norm": True, "dense_ahead": True},
    differing=True,
)


def _mimo_attention(op: str, groups: str, sinks: str) -> Rows:
    """Heads whose values are narrower than keys; ``groups``: what the words of sizes begin with."""
    qkv = f"query,hidden {groups}key,hidden {groups}value,hidden"
    return (
        GROUPED[0],
        Row("self_attn.{q,k,v}_proj.weight", "self_attention.linear_qkv.weight", op, shape=qkv),
        Row(
            "self_attn.{q,k,v}_proj.bias",
            "self_attention.linear_qkv.bias",
            op,
            "qkv_bias",
            shape=qkv.replace(",hidden", ""),
        ),
        Row(
            "self_attn.o_proj.weight",
            "self_attention.linear_proj.weight",
            shape="hidden,latent_out",
        ),
        replace(SINKS[0], hf="self_attn.attention_sink_bias", when=sinks),
    )


_MIMO_SLIDING = _mimo_attention("sliding_qkv", "swa_", "sliding_sinks")
MIMO_V2 = MegatronRows(
    _mimo_attention("wide_qkv", "", "full_sinks"),
    DENSE,
    MOE + ROUTER_BIAS,
    replace(
        _FINAL_NORM_MTP,
        prefix="model.mtp.layers.{number}.",
        dense=_rename(DENSE, "post_attention_layernorm.", "pre_mlp_layernorm."),
    ),
    attentions={"sliding_attention": _MIMO_SLIDING, "mtp": _MIMO_SLIDING},
    flags={
        "qkv_bias": ("attention_bias", False),
        "sliding_sinks": ("add_swa_attention_sink_bias", True),
        "full_sinks": ("add_full_attention_sink_bias", False),
        "wide_heads": True,
        "dense_ahead": True,
        "mtp_unsaid": True,
    },
    differing=True,
)
#: Without a rank of queries, but for its config DeepSeek's.
SARVAM_MLA = MegatronRows(LATENT, DENSE, MOE + SHARED + ROUTER_BIAS, differing=True)
