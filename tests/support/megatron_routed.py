"""The tiny models with experts: one record for each family."""

from tests.support import megatron_towers as towers
from tests.support.megatron_parts import (
    ALIKE,
    BEFORE_FC,
    DECODER,
    GROUPED,
    HEAD_NORMS,
    INDEXER,
    JOINED,
    JOINED_FC,
    LATENT,
    LATENT_KEYS,
    LOW_QUERY,
    MLP,
    NORMS,
    OUTPUT_BIAS,
    PACKED,
    PLAIN_QUERY,
    QKV_BIAS,
    ROUTED,
    ROUTER,
    SCORE_BIAS,
    SHARED,
    SHARED_WITH_GATE,
    WHOLE_NORMS,
    Ahead,
    Model,
    Shapes,
    after_first,
    experts,
    gated,
    vectors,
)

_EXPERTS = {"num_experts": 3, "moe_intermediate_size": 4, "num_experts_per_tok": 2}
_FEW_SAID = {"num_local_experts": 3, "num_experts_per_tok": 2}
_BIASED = {
    "n_routed_experts": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
}

# Mixtral's names; experts are 5 wide.
_MIXTRAL: Shapes = {"block_sparse_moe.gate.weight": (3, 6)}
for _expert in range(3):
    _stem = f"block_sparse_moe.experts.{_expert}"
    _MIXTRAL |= {f"{_stem}.w1.weight": (5, 6), f"{_stem}.w3.weight": (5, 6)}
    _MIXTRAL |= {f"{_stem}.w2.weight": (6, 5)}
_MINIMAX: Shapes = NORMS | GROUPED | WHOLE_NORMS
_MINIMAX |= {"block_sparse_moe.e_score_correction_bias": (3,)} | _MIXTRAL

_QWEN2 = NORMS | GROUPED | QKV_BIAS
_QWEN2_MOE = _QWEN2 | ROUTED | SHARED_WITH_GATE
_QWEN3 = NORMS | GROUPED | HEAD_NORMS

# DeepSeek's.
_BIASED_MOE = ROUTED | SCORE_BIAS | SHARED
_DEEPSEEK = NORMS | LATENT_KEYS | LOW_QUERY
_DEEPSEEK_LAYERS = after_first(_DEEPSEEK, MLP, _BIASED_MOE)
_KIMI = NORMS | LATENT_KEYS | PLAIN_QUERY
_GLM4 = NORMS | GROUPED | QKV_BIAS | HEAD_NORMS
_INDEXED = NORMS | INDEXER | LATENT_KEYS | LOW_QUERY
_INDEXED_LAYERS = after_first(_INDEXED, MLP, _BIASED_MOE)
_AHEAD = Ahead("model.layers.{at}.", before=vectors("enorm", "hnorm", "shared_head.norm") | JOINED)

_ERNIE: Shapes = ROUTED | {"mlp.moe_statics.e_score_correction_bias": (1, 3)} | SHARED

# Llama 4's second layer has experts, 4 wide and packed.
_LLAMA4_MOE: Shapes = PACKED | gated("mlp.shared_expert", 4) | {"mlp.router.weight": (3, 6)}
_LLAMA4_MOE = {name.replace("mlp", "feed_forward"): shape for name, shape in _LLAMA4_MOE.items()}
_LLAMA4_MOE = NORMS | _LLAMA4_MOE | GROUPED
_LLAMA4_MLP = NORMS | gated("feed_forward", 5) | GROUPED

_GPT_OSS: Shapes = GROUPED | QKV_BIAS | OUTPUT_BIAS | {"self_attn.sinks": (4,)} | NORMS
_GPT_OSS |= {
    "mlp.router.weight": (3, 6),
    "mlp.router.bias": (3,),
    "mlp.experts.gate_up_proj": (3, 6, 10),
    "mlp.experts.gate_up_proj_bias": (3, 10),
    "mlp.experts.down_proj": (3, 5, 6),
    "mlp.experts.down_proj_bias": (3, 6),
}

# Ling's, and those whose config has its words.
_FIRST = {"moe_intermediate_size": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
_LING = _FIRST | {"num_experts": 3, "num_shared_experts": 2}
_PREDICTS = {"num_nextn_predict_layers": 1}
_FUSED: Shapes = {"attention.query_key_value.weight": (16, 6)}
_FUSED_BIAS: Shapes = {"attention.query_key_value.bias": (16,)}
_FUSED_NORMS: Shapes = {
    "attention.query_layernorm.weight": (2,),
    "attention.key_layernorm.weight": (2,),
}
_FUSED_OUT: Shapes = {"attention.dense.weight": (6, 8)}
_LING_1_MOE = ROUTED | SHARED
_LING_MOE: Shapes = ROUTER | {"mlp.gate.expert_bias": (3,)} | experts() | SHARED
_SARVAM = _FUSED | _FUSED_NORMS | _FUSED_OUT | NORMS
#: Of lightning attention as many heads of keys as of queries; then latent attention.
_LIGHTNING: Shapes = {
    "attention.query_key_value.weight": (24, 6),
    "attention.g_proj.weight": (8, 6),
    "attention.g_norm.weight": (8,),
}
_LIGHTNING |= _FUSED_NORMS | _FUSED_OUT | NORMS
_LING_LATENT: Shapes = {
    name.replace("self_attn.", "attention.").replace("o_proj", "dense"): shape
    for name, shape in (LATENT_KEYS | LOW_QUERY | NORMS).items()
}
_HY: Shapes = {"mlp.router.gate.weight": (3, 6), "mlp.expert_bias": (3,)}
_HY |= experts() | gated("mlp.shared_mlp", 8)
_NORMED = GROUPED | HEAD_NORMS | NORMS
_EXAONE: Shapes = ROUTER | {"mlp.e_score_correction_bias": (3,)} | experts() | SHARED
_LING_JOINED = vectors("enorm", "hnorm", "final_layernorm") | JOINED
_LING_AHEAD = Ahead("model.layers.{at}.", after=_LING_JOINED)
_MLA = PLAIN_QUERY | LATENT_KEYS | NORMS


def _mimo(groups: int, mlp: Shapes, *, sinks: bool) -> Shapes:
    """Values are three wide, keys two."""
    shapes: Shapes = {
        "input_layernorm.weight": (6,),
        "self_attn.q_proj.weight": (8, 6),
        "self_attn.k_proj.weight": (2 * groups, 6),
        "self_attn.v_proj.weight": (3 * groups, 6),
        "self_attn.o_proj.weight": (6, 12),
    }
    return shapes | ({"self_attn.attention_sink_bias": (4,)} if sinks else {}) | mlp


_MIMO_MOE = ROUTER | SCORE_BIAS | experts()
_MIMO_NORM = vectors("post_attention_layernorm")
_MIMO_SLIDING = _mimo(4, _MIMO_MOE, sinks=True) | _MIMO_NORM
_MIMO_JOINED = vectors("enorm", "hnorm", "final_layernorm", "pre_mlp_layernorm") | JOINED

ROUTED_MODELS = {
    "qwen2_moe": Model(
        DECODER | _EXPERTS | {"shared_expert_intermediate_size": 5, "mlp_only_layers": [1]},
        (_QWEN2_MOE, _QWEN2 | MLP, _QWEN2_MOE),
        ALIKE,
    ),
    "qwen3_moe": Model(DECODER | _EXPERTS, (_QWEN3 | ROUTED,) * 3),
    "qwen3_vl_moe": Model(
        DECODER
        | _EXPERTS
        | {"vision_config": {"depth": 2, "num_heads": 2, "deepstack_visual_indexes": [0, 1]}},
        (_QWEN3 | ROUTER | PACKED,) * 3,
        trunk="model.language_model.",
        tower=towers.QWEN3_VL,
        tower_has_rows=True,
    ),
    "mixtral": Model(DECODER | _FEW_SAID, (NORMS | GROUPED | _MIXTRAL,) * 3),
    "minimax_m2": Model(DECODER | _FEW_SAID, (_MINIMAX,) * 3),
    "olmoe": Model(
        DECODER | {"num_experts": 3, "num_experts_per_tok": 2},
        (NORMS | GROUPED | WHOLE_NORMS | ROUTER | experts(5),) * 3,
    ),
    "deepseek": Model(DECODER | _BIASED, after_first(NORMS | GROUPED, MLP, ROUTED | SHARED), ALIKE),
    "deepseek_v2": Model(
        DECODER | LATENT | _BIASED, after_first(_DEEPSEEK, MLP, ROUTED | SHARED), ALIKE
    ),
    "deepseek_v3": Model(DECODER | LATENT | _BIASED, _DEEPSEEK_LAYERS, ALIKE, ahead=_AHEAD),
    "kimi_k2": Model(
        DECODER | LATENT | _BIASED | {"q_lora_rank": None, "n_shared_experts": 0},
        after_first(_KIMI, MLP, ROUTED | SCORE_BIAS),
        ALIKE,
        ahead=_AHEAD,
    ),
    "glm4_moe_lite": Model(
        DECODER
        | LATENT
        | _BIASED
        | {"mlp_layer_types": ["dense", "sparse", "sparse"], "first_k_dense_replace": 0},
        _DEEPSEEK_LAYERS,
        ALIKE,
        ahead=_AHEAD,
    ),
    "deepseek_v32": Model(
        DECODER | LATENT | _BIASED | {"index_n_heads": 2, "index_head_dim": 2},
        _INDEXED_LAYERS,
        ALIKE,
        ahead=_AHEAD,
    ),
    "glm_moe_dsa": Model(
        DECODER
        | LATENT
        | _BIASED
        | {"index_n_heads": 2, "index_head_dim": 2, "indexer_types": ["full", "shared", "full"]},
        (_INDEXED_LAYERS[0], _DEEPSEEK | _BIASED_MOE, _INDEXED_LAYERS[2]),
        ALIKE,
        ahead=_AHEAD,
    ),
    "glm4_moe": Model(
        DECODER | _BIASED | {"attention_bias": True, "use_qk_norm": True},
        after_first(_GLM4, MLP, _BIASED_MOE),
        ALIKE,
        ahead=_AHEAD,
    ),
    "dots1": Model(DECODER | _BIASED, after_first(_QWEN3, MLP, _BIASED_MOE), ALIKE),
    "ernie4_5_moe": Model(
        DECODER
        | {
            "moe_num_experts": 3,
            "moe_num_shared_experts": 2,
            "moe_intermediate_size": 4,
            "moe_k": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 1,
        },
        after_first(NORMS | GROUPED, MLP, _ERNIE),
        ALIKE,
    ),
    "llama4_text": Model(
        DECODER
        | {
            "num_local_experts": 3,
            "num_experts_per_tok": 1,
            "intermediate_size": 4,
            "intermediate_size_mlp": 5,
            "interleave_moe_layer_step": 2,
        },
        (_LLAMA4_MLP, _LLAMA4_MOE, _LLAMA4_MLP),
        ALIKE,
        even=_LLAMA4_MOE,
    ),
    "gpt_oss": Model(DECODER | _FEW_SAID | {"attention_bias": True}, (_GPT_OSS,) * 3),
    "hy_v3": Model(
        DECODER | _LING | _PREDICTS, after_first(_NORMED, MLP, _HY), ALIKE, ahead=_LING_AHEAD
    ),
    "bailing_moe": Model(
        DECODER | _LING,
        after_first(_FUSED | _FUSED_OUT | NORMS, MLP, _LING_1_MOE),
        ALIKE,
        ahead=_LING_AHEAD,
        embedding="word_embeddings",
    ),
    "bailing_moe_v2": Model(
        DECODER | _LING | _PREDICTS | {"use_qkv_bias": True},
        after_first(_FUSED_BIAS | _SARVAM, MLP, _LING_MOE),
        ALIKE,
        ahead=_LING_AHEAD,
        embedding="word_embeddings",
    ),
    "bailing_hybrid": Model(
        DECODER | LATENT | _LING | _PREDICTS | {"layer_group_size": 2, "group_norm_size": 4},
        (_LIGHTNING | MLP, _LING_LATENT | _LING_MOE, _LING_LATENT | _LING_MOE),
        ALIKE | {"layer_group_size": 1},
        ahead=_LING_AHEAD,
        embedding="word_embeddings",
        can_be_hybrid=False,
    ),
    "sarvam_moe": Model(
        DECODER | _FIRST | {"n_routed_experts": 3, "n_shared_experts": 2},
        after_first(_SARVAM, MLP, _LING_MOE),
        ALIKE,
        embedding="word_embeddings",
    ),
    "sarvam_mla": Model(
        DECODER | _LING | LATENT | {"q_lora_rank": None},
        after_first(_MLA, MLP, ROUTER | SCORE_BIAS | experts() | SHARED),
        ALIKE,
    ),
    "exaone_moe": Model(
        DECODER | _LING | _PREDICTS,
        after_first(_NORMED, MLP, _EXAONE),
        ALIKE,
        ahead=Ahead(
            "mtp.layers.0.",
            "mtp.",
            after=BEFORE_FC | vectors("norm") | JOINED_FC,
            of=_NORMED | MLP,
        ),
    ),
    "mimo_v2_flash": Model(
        DECODER
        | {
            "n_routed_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 4,
            "moe_layer_freq": [0, 1, 1],
            "hybrid_layer_pattern": [0, 1, 1],
            "swa_num_key_value_heads": 4,
            "v_head_dim": 3,
            "num_nextn_predict_layers": 1,
        },
        (_mimo(2, MLP, sinks=False) | _MIMO_NORM, _MIMO_SLIDING, _MIMO_SLIDING),
        ALIKE | {"moe_layer_freq": [1] * 3, "hybrid_layer_pattern": [1] * 3},
        ahead=Ahead("model.mtp.layers.0.", after=_MIMO_JOINED, of=_mimo(4, MLP, sinks=True)),
    ),
}
