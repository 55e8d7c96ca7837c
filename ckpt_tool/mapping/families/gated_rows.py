"""Rows of Qwen3-Next and Qwen3.5: attention with a gate, gated DeltaNet, and what predicts further.

The norms of these families count from zero on both sides, but for that of DeltaNet's output, which
counts from one on the Hub. ``torch_dist`` of megatron-core has the parts of DeltaNet's tensors by
themselves. ms-swift has them in one, by key head, and the norm as the Hub has it; slime has
transformers' own module. Sources: ``megatron/core/ssm/gated_delta_net`` of 0.19; Megatron-Bridge
0.6.2 (``qwen/qwen3_next_bridge.py``, ``qwen/qwen35_bridge.py``); mcore_bridge 1.6.5
(``modules/gated_delta_net.py``, ``gpts/qwen3_next_gdn.py``); slime 0.2.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_families import QWEN3_VL
from ckpt_tool.mapping.families.megatron_form import Flag, MegatronRows, Row, Rows
from ckpt_tool.mapping.families.megatron_rows import (
    DENSE,
    GROUPED,
    MOE,
    SHARED_GATE,
    TRANSFORMERS_MTP,
)

#: Query heads have a gate each.
GATED = tuple(
    replace(row, op="gated_qkv", shape=row.shape.replace("query", "two_query", 1))
    if row.op == "qkv"
    else row
    for row in GROUPED
)
_IN, _CONV = "self_attention.in_proj", "self_attention.conv1d.weight"
_NORM = Row("input_layernorm.weight", f"{_IN}.layer_norm_weight", shape="hidden")
_SLIME_NORM = replace(_NORM, megatron="self_attention.input_layernorm.weight")
_OUT_NORM = Row("linear_attn.norm.weight", "self_attention.out_norm.weight", shape="linear_head")
_CONVOLUTION = Row("linear_attn.conv1d.weight", _CONV, shape="linear_conv,one,kernel")
_ENDS = (
    Row("linear_attn.A_log", "self_attention.A_log", shape="linear_heads"),
    Row("linear_attn.dt_bias", "self_attention.dt_bias", shape="linear_heads"),
    Row(
        "linear_attn.out_proj.weight",
        "self_attention.out_proj.weight",
        shape="hidden,linear_value",
    ),
)
_THREE = "linear_key,{0} linear_key,{0} linear_value,{0}"
_CORE = (
    _NORM,
    replace(
        _CONVOLUTION,
        megatron=f"{_CONV}.{{query,key,value}}",
        op="rows",
        whole=_THREE.format("one,kernel"),
    ),
    replace(_OUT_NORM, op="from_zero"),
    *_ENDS,
)
_SWIFT = (_NORM, replace(_CONVOLUTION, op="woven_qkv"), _OUT_NORM, *_ENDS)

#: Of Qwen3-Next: two tensors that have the rows of each key head together.
_QKVZ = Row("linear_attn.in_proj_qkvz.weight", f"{_IN}_qkvz.weight", shape="linear_qkvz,hidden")
_BA = Row("linear_attn.in_proj_ba.weight", f"{_IN}_ba.weight", shape="linear_ba,hidden")
_NEXT = (
    replace(
        _QKVZ,
        megatron=f"{_IN}.weight.{{query,key,value,z}}",
        op="qkvz_rows",
        whole=f"{_THREE} linear_value,{{0}}".format("hidden"),
    ),
    replace(
        _BA,
        megatron=f"{_IN}.weight.{{beta,alpha}}",
        op="ba_rows",
        whole="linear_heads,hidden",
    ),
    *_CORE,
)
_NEXT_WOVEN = Row(
    "linear_attn.in_proj_{qkvz,ba}.weight",
    f"{_IN}.weight",
    "woven_by_head",
    shape="linear_qkvz,hidden linear_ba,hidden",
)
#: Of Qwen3.5: four, of which one is query, key and value, one after the other.
_APART = (
    Row(
        "linear_attn.in_proj_qkv.weight",
        f"{_IN}.weight.{{query,key,value}}",
        "rows",
        shape="linear_conv,hidden",
        whole=_THREE.format("hidden"),
    ),
    Row("linear_attn.in_proj_z.weight", f"{_IN}.weight.z", shape="linear_value,hidden"),
    Row("linear_attn.in_proj_b.weight", f"{_IN}.weight.beta", shape="linear_heads,hidden"),
    Row("linear_attn.in_proj_a.weight", f"{_IN}.weight.alpha", shape="linear_heads,hidden"),
    *_CORE,
)
_APART_SHAPES = "linear_conv,hidden linear_value,hidden", "linear_heads,hidden linear_heads,hidden"
_APART_WOVEN = Row(
    "linear_attn.in_proj_{qkv,z,b,a}.weight",
    f"{_IN}.weight",
    "woven_apart",
    shape=" ".join(_APART_SHAPES),
)
_APART_TWO = (
    Row(
        "linear_attn.in_proj_{qkv,z}.weight",
        f"{_IN}_qkvz.weight",
        "woven_qkvz",
        shape=_APART_SHAPES[0],
    ),
    Row("linear_attn.in_proj_{b,a}.weight", f"{_IN}_ba.weight", "woven_ba", shape=_APART_SHAPES[1]),
)


def _keep(rows: Rows, inside: str = "linear_attn.") -> Rows:
    """The same on both sides, in attention's place or ``inside`` of it; without the norm before."""
    return tuple(
        Row(
            row.hf, f"self_attention.{inside}{row.hf.removeprefix('linear_attn.')}", shape=row.shape
        )
        for row in rows
        if row.hf.startswith("linear_attn.")
    )


#: ``linear_attention``, as configs call it, and how others than megatron-core store that.
NEXT_KINDS = {
    "linear_attention": _NEXT,
    "linear_attention of ms-swift": (_NEXT_WOVEN, *_SWIFT),
    "linear_attention of ms-swift, apart": (_QKVZ, _BA, *_SWIFT),
    "linear_attention of ms-swift, a module": (_NORM, *_keep(_NEXT, "")),
    "linear_attention of slime": (_SLIME_NORM, *_keep(_NEXT)),
}
APART_KINDS = {
    "linear_attention": _APART,
    "linear_attention of ms-swift": (_APART_WOVEN, *_SWIFT),
    "linear_attention of ms-swift, apart": (*_APART_TWO, *_SWIFT),
    "linear_attention of ms-swift, a module": (_NORM, *_keep(_APART, "")),
    "linear_attention of slime": (_SLIME_NORM, *_keep(_APART)),
}

#: slime exchanges the halves of this one of Qwen3-Next, both ways, and not of Qwen3.5.
_NEXT_MTP = replace(
    TRANSFORMERS_MTP,
    rows=tuple(
        replace(row, op="fc") if row.hf == "fc.weight" else row for row in TRANSFORMERS_MTP.rows
    ),
)
_FLAGS: dict[str, Flag] = {
    "qk_norm": True,
    "output_gate": True,
    "zero_centred": True,
    "qkv_bias": ("attention_bias", False),
    "output_bias": ("attention_bias", False),
}

_EXPERTS = "mlp.experts.experts."
#: Experts as Qwen3.5 and 3.6 have them, released and saved by transformers.
_EITHER = (
    *(replace(row, when="unpacked") if "{e}" in row.hf else row for row in MOE),
    Row(
        "mlp.experts.gate_up_proj",
        f"{_EXPERTS}linear_fc1.weight",
        "packed",
        "packed",
        shape="experts,two_expert_ffn,hidden",
    ),
    Row(
        "mlp.experts.down_proj",
        f"{_EXPERTS}linear_fc2.weight",
        "packed",
        "packed",
        shape="experts,hidden,expert_ffn",
    ),
    *SHARED_GATE,
)

QWEN3_NEXT = MegatronRows(
    GATED,
    DENSE,
    MOE + SHARED_GATE,
    _NEXT_MTP,
    flags=_FLAGS | {"mtp_unsaid": True},
    differing=True,
    attentions=NEXT_KINDS,
    kinds_by="full_attention_interval",
    defaults={"partial_rotary_factor": 0.25},
)
QWEN3_5 = replace(QWEN3_NEXT, moe=(), mtp=TRANSFORMERS_MTP, flags=_FLAGS, attentions=APART_KINDS)
QWEN3_5_MOE = replace(QWEN3_5, moe=_EITHER)
QWEN3_5_VL = replace(QWEN3_5, around=QWEN3_VL.around)
QWEN3_5_MOE_VL = replace(QWEN3_5_VL, moe=_EITHER, flags=_FLAGS | {"packed": True})
