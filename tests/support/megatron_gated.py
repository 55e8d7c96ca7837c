"""The tiny models with Gated DeltaNet: one record for each family.

Of three layers the second one has full attention. DeltaNet has two key heads of three, and four
value heads of two.
"""

from tests.support import megatron_towers as towers
from tests.support.megatron_parts import (
    ALIKE,
    BEFORE_FC,
    DECODER,
    GROUPED,
    HEAD_NORMS,
    JOINED_FC,
    MLP,
    NORMS,
    ROUTED,
    ROUTER,
    SHARED_WITH_GATE,
    Ahead,
    Model,
    Shapes,
    vectors,
)

_CONFIG = DECODER | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 3,
    "linear_value_head_dim": 2,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
}
_EXPERTS = {
    "num_experts": 3,
    "moe_intermediate_size": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 5,
}
_PREDICTS = {"mtp_num_hidden_layers": 1}
_VISION = {"vision_config": {"depth": 2, "num_heads": 2}}
_FULL_ATTENTION = {"layer_types": ["full_attention"] * 3}


def _linear(projections: dict[str, int]) -> Shapes:
    shapes: Shapes = {"A_log": (4,), "dt_bias": (4,), "norm.weight": (2,)}
    shapes["out_proj.weight"] = (6, 8)
    shapes |= {f"in_proj_{name}.weight": (rows, 6) for name, rows in projections.items()}
    shapes["conv1d.weight"] = (20, 1, 4)
    return NORMS | {f"linear_attn.{name}": shape for name, shape in shapes.items()}


_FULL = NORMS | GROUPED | {"self_attn.q_proj.weight": (16, 6)} | HEAD_NORMS
_FUSED = _linear({"qkvz": 28, "ba": 8})
_APART = _linear({"qkv": 20, "z": 8, "b": 4, "a": 4})
_MOE = ROUTED | SHARED_WITH_GATE
# Experts of a layer are one tensor, but for those of the layer that predicts further.
_PACKED: Shapes = {"mlp.experts.gate_up_proj": (3, 8, 6), "mlp.experts.down_proj": (3, 6, 4)}
_PACKED_MOE = ROUTER | _PACKED | SHARED_WITH_GATE


def _ahead(mlp: Shapes) -> Ahead:
    before = BEFORE_FC | vectors("norm")
    return Ahead("mtp.layers.0.", "mtp.", before=before, after=JOINED_FC, of=_FULL | mlp)


def _layers(mlp: Shapes) -> tuple[Shapes, ...]:
    return (_APART | mlp, _FULL | mlp, _APART | mlp)


GATED_MODELS = {
    "qwen3_next": Model(
        _CONFIG | _EXPERTS | {"mlp_only_layers": [1], "num_nextn_predict_layers": 1},
        (_FUSED | _MOE, _FULL | MLP, _FUSED | _MOE),
        alike=ALIKE | _FULL_ATTENTION,
        even=_FULL | _MOE,
        ahead=_ahead(_MOE),
    ),
    "qwen3_5_text": Model(
        _CONFIG | _PREDICTS,
        _layers(MLP),
        alike=_FULL_ATTENTION,
        even=_FULL | MLP,
        ahead=_ahead(MLP),
    ),
    "qwen3_5_moe_text": Model(
        _CONFIG | _EXPERTS | _PREDICTS,
        _layers(_MOE),
        alike=_FULL_ATTENTION,
        even=_FULL | _MOE,
        ahead=_ahead(_MOE),
    ),
    "qwen3_5": Model(
        _CONFIG | _PREDICTS | _VISION,
        _layers(MLP),
        alike=_FULL_ATTENTION,
        even=_FULL | MLP,
        ahead=_ahead(MLP),
        trunk="model.language_model.",
        tower=towers.QWEN3_5,
        tower_has_rows=True,
    ),
    "qwen3_5_moe": Model(
        _CONFIG | _EXPERTS | _PREDICTS | _VISION,
        _layers(_PACKED_MOE),
        alike=_FULL_ATTENTION,
        even=_FULL | _PACKED_MOE,
        ahead=_ahead(_MOE),
        trunk="model.language_model.",
        tower=towers.QWEN3_5,
        tower_has_rows=True,
    ),
}
