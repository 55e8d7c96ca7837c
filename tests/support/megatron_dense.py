"""The tiny models without experts: one record for each family."""

from tests.support import megatron_towers as towers
from tests.support.megatron_parts import (
    BEFORE_FC,
    DECODER,
    GROUPED,
    HEAD_NORMS,
    JOINED_FC,
    MLP,
    NORMS,
    OUTPUT_BIAS,
    QKV_BIAS,
    TIED,
    Ahead,
    Model,
    Shapes,
    vectors,
)

_PLAIN = NORMS | GROUPED | MLP
_BIASED = NORMS | GROUPED | QKV_BIAS | MLP
_NORMED = NORMS | GROUPED | HEAD_NORMS | MLP

_LLAMA = NORMS | GROUPED | QKV_BIAS | OUTPUT_BIAS | MLP
_LLAMA |= {"mlp.gate_proj.bias": (5,), "mlp.up_proj.bias": (5,), "mlp.down_proj.bias": (6,)}

_FOUR_NORMS = vectors("post_feedforward_layernorm", "pre_feedforward_layernorm")
_GEMMA3 = NORMS | GROUPED | HEAD_NORMS | _FOUR_NORMS | MLP

_EXAONE4 = vectors("post_attention_layernorm") | GROUPED | HEAD_NORMS
_EXAONE4 |= vectors("post_feedforward_layernorm") | MLP

_NEMOTRON: Shapes = NORMS | GROUPED
_NEMOTRON |= {"input_layernorm.bias": (6,), "post_attention_layernorm.bias": (6,)}
_NEMOTRON |= {"mlp.up_proj.weight": (5, 6), "mlp.down_proj.weight": (6, 5)}

_GLM4: Shapes = NORMS | vectors("post_self_attn_layernorm", "post_mlp_layernorm")
_GLM4 |= {"mlp.gate_up_proj.weight": (10, 6), "mlp.down_proj.weight": (6, 5)}
_GLM4 |= GROUPED | QKV_BIAS

DENSE_MODELS = {
    "llama": Model(DECODER | {"attention_bias": True, "mlp_bias": True}, (_LLAMA,) * 3),
    "mistral": Model(DECODER, (_PLAIN,) * 3),
    "ministral3": Model(DECODER, (_PLAIN,) * 3),
    "qwen2": Model(TIED, (_BIASED,) * 3),
    "qwen3": Model(DECODER, (_NORMED,) * 3),
    "ernie4_5": Model(TIED | {"use_bias": True}, (_LLAMA,) * 3),
    "internlm3": Model(DECODER | {"qkv_bias": True, "bias": True}, (_LLAMA,) * 3),
    "gemma": Model(TIED, (_PLAIN,) * 3),
    "gemma2": Model(TIED, (NORMS | GROUPED | _FOUR_NORMS | MLP,) * 3),
    "gemma3_text": Model(TIED, (_GEMMA3,) * 3),
    "exaone4": Model(DECODER, (_EXAONE4,) * 3),
    "nemotron": Model(DECODER, (_NEMOTRON,) * 3, final={"norm.weight": (6,), "norm.bias": (6,)}),
    "glm4": Model(DECODER, (_GLM4,) * 3, can_be_hybrid=False),
    "mimo": Model(
        DECODER | {"num_nextn_predict_layers": 2},
        (_BIASED,) * 3,
        ahead=Ahead(
            "model.mtp_layers.{number}.",
            before=vectors("token_layernorm", "hidden_layernorm", "final_layernorm")
            | {"input_proj.weight": (6, 12)},
        ),
    ),
    "qwen2_vl": Model(DECODER, (_BIASED,) * 3, tower=towers.QWEN2_VL),
    "qwen2_5_vl": Model(
        DECODER | {"vision_config": {"depth": 2, "num_heads": 2}},
        (_BIASED,) * 3,
        tower=towers.QWEN2_5_VL,
        tower_has_rows=True,
    ),
    "qwen3_vl": Model(
        DECODER
        | {"vision_config": {"depth": 2, "num_heads": 2, "deepstack_visual_indexes": [0, 1]}},
        (_NORMED,) * 3,
        trunk="model.language_model.",
        tower=towers.QWEN3_VL,
        tower_has_rows=True,
    ),
    "exaone4_5": Model(
        DECODER
        | {
            "num_nextn_predict_layers": 1,
            "vision_config": {
                "depth": 2,
                "num_heads": 2,
                "num_key_value_heads": 1,
                "hidden_size": 4,
            },
        },
        (_EXAONE4,) * 3,
        ahead=Ahead("mtp.layers.0.", "mtp.", before=vectors("norm") | BEFORE_FC | JOINED_FC),
        trunk="model.language_model.",
        tower=towers.EXAONE4_5,
        tower_has_rows=True,
    ),
    "mistral3": Model(
        DECODER,
        (_PLAIN,) * 3,
        trunk="language_model.model.",
        head="language_model.lm_head.weight",
        tower=towers.MISTRAL3,
    ),
    "gemma3": Model(
        TIED | {"vision_config": {"hidden_size": 4}},
        (_GEMMA3,) * 3,
        trunk="language_model.model.",
        head="language_model.lm_head.weight",
        tower=towers.GEMMA3,
    ),
}
