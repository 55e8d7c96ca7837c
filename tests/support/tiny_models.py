"""Tiny models of every family whose names in memory differ from the Hub's, and of some others."""

from dataclasses import dataclass
from typing import Any

import transformers
from transformers import PreTrainedModel

from tests.real.fill import fill_distinct
from tests.support.versions import require_transformers_5

_DECODER = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_HEADS = {"head_dim": 8}
_MOE = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_ROUTED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT_ATTENTION = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
_LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
_QWEN3_5_MOE = {
    **_HEADS,
    **_MOE,
    **_LINEAR_ATTENTION,
    "shared_expert_intermediate_size": 28,
    "rope_parameters": {**_MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
}
_QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_QWEN3_VISION = {**_QWEN_VISION, "num_position_embeddings": 16}
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}


@dataclass(frozen=True)
class TinyModel:
    """A class of transformers and what its config is given."""

    model_class: str
    settings: dict[str, Any]


def _text(model_class: str, *parts: dict[str, Any], **more: Any) -> TinyModel:
    settings = dict(_DECODER)
    for part in (*parts, more):
        settings |= part
    return TinyModel(model_class, settings)


def _vision(
    model_class: str, text: dict[str, Any], vision: dict[str, Any], **more: Any
) -> TinyModel:
    settings = {"text_config": {**_DECODER, **text}, "vision_config": vision, **more}
    return TinyModel(model_class, {"tie_word_embeddings": False, **settings})


_INDEXER = {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 4}

MODELS = {
    "llama": _text("LlamaForCausalLM", _HEADS),
    "qwen2": _text("Qwen2ForCausalLM"),
    "qwen3": _text("Qwen3ForCausalLM", _HEADS),
    "gemma3_text": _text("Gemma3ForCausalLM", _HEADS, sliding_window=16),
    "gpt2": _text("GPT2LMHeadModel", n_inner=40),
    "phi3": _text("Phi3ForCausalLM"),
    "gpt_neox": _text("GPTNeoXForCausalLM"),
    "gpt_oss": _text("GptOssForCausalLM", _HEADS, num_local_experts=3, num_experts_per_tok=2),
    "qwen2_moe": _text("Qwen2MoeForCausalLM", _MOE, shared_expert_intermediate_size=28),
    "qwen3_moe": _text("Qwen3MoeForCausalLM", _HEADS, _MOE),
    "deepseek_v2": _text("DeepseekV2ForCausalLM", _ROUTED, _LATENT_ATTENTION, topk_method="greedy"),
    "deepseek_v3": _text("DeepseekV3ForCausalLM", _ROUTED, _LATENT_ATTENTION),
    "glm4_moe": _text("Glm4MoeForCausalLM", _HEADS, _ROUTED, use_qk_norm=True),
    "glm4_moe_lite": _text("Glm4MoeLiteForCausalLM", _ROUTED, _LATENT_ATTENTION),
    "deepseek_v32": _text("DeepseekV32ForCausalLM", _ROUTED, _LATENT_ATTENTION, _INDEXER),
    "glm_moe_dsa": _text(
        "GlmMoeDsaForCausalLM",
        _ROUTED,
        _LATENT_ATTENTION,
        _INDEXER,
        indexer_types=["full", "shared"],
    ),
    "dots1": _text("Dots1ForCausalLM", _HEADS, _ROUTED),
    "olmoe": _text("OlmoeForCausalLM", num_experts=3, num_experts_per_tok=2),
    "hunyuan_v1_moe": _text("HunYuanMoEV1ForCausalLM", _HEADS, num_experts=3, moe_topk=2),
    "qwen3_next": _text(
        "Qwen3NextForCausalLM", _HEADS, _MOE, _LINEAR_ATTENTION, shared_expert_intermediate_size=28
    ),
    "qwen3_5_moe": _vision("Qwen3_5MoeForConditionalGeneration", _QWEN3_5_MOE, _QWEN3_VISION),
    "qwen3_5_moe_text": _text("Qwen3_5MoeForCausalLM", _QWEN3_5_MOE),
    "mixtral": _text("MixtralForCausalLM", _HEADS, num_local_experts=3),
    "minimax": _text(
        "MiniMaxForCausalLM",
        _HEADS,
        num_local_experts=3,
        num_experts_per_tok=2,
        layer_types=["full_attention", "linear_attention"],
    ),
    "minimax_m2": _text("MiniMaxM2ForCausalLM", _HEADS, num_local_experts=3, num_experts_per_tok=2),
    "jamba": _text(
        "JambaForCausalLM",
        num_experts=3,
        num_experts_per_tok=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        use_mamba_kernels=False,
        mamba_dt_rank=4,
        mamba_d_state=4,
    ),
    "mistral3": _vision(
        "Mistral3ForConditionalGeneration",
        {"model_type": "ministral3", **_HEADS},
        {"model_type": "pixtral", **_TOWER, "head_dim": 8},
    ),
    "qwen2_vl": _vision(
        "Qwen2VLForConditionalGeneration",
        {"rope_parameters": _MROPE},
        {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4},
    ),
    "qwen2_5_vl": _vision(
        "Qwen2_5_VLForConditionalGeneration",
        {"rope_parameters": _MROPE},
        {**_QWEN_VISION, "fullatt_block_indexes": [1], "window_size": 16},
    ),
    "qwen3_vl": _vision(
        "Qwen3VLForConditionalGeneration",
        {**_HEADS, "rope_parameters": _MROPE},
        {**_QWEN3_VISION, "deepstack_visual_indexes": [0]},
    ),
    "qwen3_vl_moe": _vision(
        "Qwen3VLMoeForConditionalGeneration",
        {**_HEADS, **_MOE, "rope_parameters": _MROPE},
        {**_QWEN3_VISION, "deepstack_visual_indexes": [0]},
    ),
    "phimoe": _text("PhimoeForCausalLM", num_local_experts=3),
    "granitemoe": _text("GraniteMoeForCausalLM", num_local_experts=3, num_experts_per_tok=2),
    "lfm2_moe": _text(
        "Lfm2MoeForCausalLM", _MOE, num_dense_layers=1, layer_types=["conv", "full_attention"]
    ),
    "ernie4_5_moe": _text(
        "Ernie4_5_MoeForCausalLM",
        moe_num_experts=3,
        moe_k=2,
        moe_intermediate_size=24,
        moe_num_shared_experts=1,
        moe_layer_start_index=1,
        moe_layer_end_index=1,
    ),
    "flint": _text(
        "FlintForCausalLM", _HEADS, _MOE, shared_expert_intermediate_size=28, mlp_only_layers=[0]
    ),
    "inkling2_text": _text(
        "Inkling2ForCausalLM",
        _HEADS,
        unpadded_vocab_size=48,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        swa_head_dim=8,
        layer_types=["hybrid_sliding", "hybrid"],
        moe_intermediate_size=24,
        n_routed_experts=3,
        num_experts_per_tok=2,
        n_layers_per_attn_res_block=1,
        d_rel=4,
        rel_extent=16,
    ),
    "gemma3": _vision(
        "Gemma3ForConditionalGeneration",
        {**_HEADS, "sliding_window": 16},
        {**_TOWER, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
    ),
    "llava": _vision(
        "LlavaForConditionalGeneration",
        {**_HEADS, "model_type": "llama"},
        {**_TOWER, "model_type": "clip_vision_model", "projection_dim": 16},
        image_token_index=40,
    ),
}


def build(family: str, **settings: Any) -> PreTrainedModel:
    """The family's model, every element of a tensor distinct; ``settings`` change its config."""
    require_transformers_5()
    tiny = MODELS[family]
    model_class: type[PreTrainedModel] = getattr(transformers, tiny.model_class)
    config = model_class.config_class(**{**tiny.settings, **settings})
    return filled(model_class, config)


def filled(model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A model whose elements are distinct within each tensor."""
    model = model_class(config)
    fill_distinct(model)
    return model
