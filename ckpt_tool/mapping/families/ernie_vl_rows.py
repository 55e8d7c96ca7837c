"""The rows of ERNIE-4.5-VL: two pools of experts, of text and of what is seen, and shared ones.

On the Hub the experts of both are numbered through, those of text first. megatron-core has no such
layer: Megatron-Bridge 0.6.2 has two of megatron-core's in one. Its tower and its resampler are
transformers' own, whose names the Hub has otherwise. Source: ``ernie_vl/ernie45_vl_bridge.py``.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import Around, MegatronRows, Row, Rows
from ckpt_tool.mapping.families.megatron_rows import DENSE, GROUPED, SHARED


def _list_pool(name: str, gate: str, number: str, width: str) -> Rows:
    """``number``: that of an expert on the Hub; ``width``: the word for that of all."""
    experts = f"mlp.{name}.experts.experts.{{e}}."
    return (
        Row(f"mlp.gate.{gate}", f"mlp.{name}.router.weight", "turned", shape="hidden,experts"),
        Row(
            f"mlp.experts.{number}.{{gate,up}}_proj.weight",
            f"{experts}linear_fc1.weight",
            "gate_up",
            shape=f"{width},hidden",
        ),
        Row(
            f"mlp.experts.{number}.down_proj.weight",
            f"{experts}linear_fc2.weight",
            shape=f"hidden,{width}",
        ),
    )


_MOE = (
    Row("post_attention_layernorm.weight", "pre_mlp_layernorm.weight", shape="hidden"),
    *_list_pool("text_moe_layer", "weight", "{e}", "expert_ffn"),
    *_list_pool("vision_moe_layer", "weight_1", "{E+e}", "vision_expert_ffn"),
    Row(
        "mlp.moe_statics.e_score_correction_bias",
        "mlp.{text_moe_layer,vision_moe_layer}.router.expert_bias",
        "row_each",
        dtype="float32",
        shape="two,experts",
        whole="experts",
    ),
    *SHARED,
)
_RESAMPLER = "model.resampler_model."
#: How the Hub numbers what transformers names.
_LINEAR = {
    f"{_RESAMPLER}{part}_linear.{number}.": f"resampler_model.{part}_linear.{name}."
    for part in ("spatial", "temporal")
    for number, name in (("0", "fc1"), ("2", "fc2"), ("3", "ln"))
}
_MOVED = {
    "model.vision_model.": "vision_tower.",
    **_LINEAR,
    **{f"{_RESAMPLER}{name}.": f"resampler_model.{name}." for name in ("mlp", "after_norm")},
}
ERNIE_VL = MegatronRows(
    GROUPED,
    DENSE,
    _MOE,
    around=Around(towers=tuple(_MOVED), moved=_MOVED),
    flags={"interleaved": True, "pools": True},
    differing=True,
    defaults={"moe_layer_start_index": 1, "moe_num_shared_experts": 2},
)
#: What its class has in float32, whatever its weights are.
FLOAT32 = r"\.mlp\.gate\.weight|\.moe_statics\."
#: As it was released before transformers had it: another config, and one prefix less.
FLAT = replace(
    ERNIE_VL,
    around=Around(
        towers=("vision_model.", *tuple(_MOVED)[1:]),
        moved={"vision_model.": "vision_tower.", **_MOVED},
    ),
)
