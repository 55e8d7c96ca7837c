"""What :mod:`tests.support.shrinking` cannot know of a family: arguments of its config."""

from __future__ import annotations

from typing import Any

_HEAD = {"head_dim": 8}
_IMAGES = {"<image>": 40, "IMGIMGA": 41, "IMGIMGB": 42}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_MROPE = {"rope_parameters": _ROPE | {"mrope_section": [1, 1, 2]}}
_BY_LAYER = {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}}
_DOTS3 = {
    "num_hidden_layers": 4, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16, "swa_head_dim": 16, "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4,
    "first_k_dense_replace": 1, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 8,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "q_lora_rank": 16,
    "kv_lora_rank": 16,
}  # fmt: skip
_GEMMA4 = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8, "vocab_size": 48,
    "vocab_size_per_layer_input": 48, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
_QWEN4 = {
    "head_dim": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8,
    "indexer_budget": 8, "indexer_compress_ratio": 2, "hc_lowrank": 8, "ngram_vocab_size_base": 50,
}  # fmt: skip
_SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": 32, "patch_size": 4,
         "window_size": 2}  # fmt: skip
_ZAMBA = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4,
          "intermediate_size": 40, "num_hidden_layers": 4,
          "layers_block_type": ["mamba", "hybrid"] * 2}  # fmt: skip

RECIPES: dict[str, dict[str, Any]] = {
    "bit": {"num_groups": 4, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "blt": {"encoder_config": {"hidden_size": 16, "num_attention_heads": 4},
            "decoder_config": {"hidden_size": 16, "num_attention_heads": 4},
            "global_config": {"hidden_size": 32, "num_attention_heads": 4}},
    "chameleon": {"vocabulary_map": _IMAGES},
    "cohere_compass": {"text_config": _BY_LAYER},
    "cohere_compass_text": _BY_LAYER,
    "cvt": {"num_heads": [1, 1, 2], "embed_dim": [8, 8, 16], "depth": [1, 2, 3]},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "diffusion_gemma": {"text_config": _GEMMA4 | {"num_experts": 4, "top_k_experts": 2,
                                                 "moe_intermediate_size": 24}},
    "donut-swin": _SWIN,
    "deepseek_ocr2": {"text_config": {
        "num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"]}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "dots3_note": {"text_config": _DOTS3, "vision_config": {"adapter_out_dim": 32},
                   "audio_config": {"adapter_out_dim": 32}},
    "dots3_note_text": _DOTS3,
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.1, "image_size": 64},
    "emu3": {"text_config": {"vocab_size": 48}, "vocabulary_map": {
        "<image>": 40, "<|extra_200|>": 41, "<|visual token 000000|>": 42}},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "ernie4_5_vl_moe": {"text_config": _MROPE},
    "esmc": {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "fun_asr_nano": {"text_config": {"hidden_size": 32},
                     "adaptor_config": {"hidden_size": 32, "intermediate_size": 8}},
    "gemma3n_text": {"num_hidden_layers": 2, "num_kv_shared_layers": 0, "layer_types": [
        "sliding_attention", "full_attention"]},
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": _GEMMA4,
    "gemma4_unified": {"text_config": _GEMMA4},
    "gemma4_unified_text": _GEMMA4,
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"],
                         "num_hidden_layers": 2},
    "hunyuan_v1_dense": _HEAD,
    "hunyuan_v1_moe": _HEAD,
    "hunyuan_vl": {"text_config": _HEAD},
    "glm4v_moe": {"text_config": {"rope_parameters": _ROPE | {
        "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "kyutai_speech_to_text": {"audio_pad_token_id": 40, "codebook_vocab_size": 16},
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "mistral4": {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    "mamba2": {"hidden_size": 32, "expand": 1, "n_groups": 1, "num_heads": 4, "head_dim": 8},
    "ministral": _HEAD,
    "musicgen": {"decoder": {"num_codebooks": 1}},
    "musicgen_melody": {"decoder": {"num_codebooks": 1}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "muse_spark": {"audio_config": {"patch_sizes": [16, 6], "hidden_sizes": [8, 16],
                                    "depths": [1, 1], "num_hidden_layers": 2}},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "perceiver": {"num_self_attention_heads": 1, "num_cross_attention_heads": 1},
    "pvt": {"num_attention_heads": [1, 2, 2, 2]},
    "pvt_v2": {"num_attention_heads": [1, 2, 2, 2]},
    "qwen2_5_omni": {"enable_audio_output": False},
    "qwen3_omni_moe": {"enable_audio_output": False},
    "reformer": {"is_decoder": False, "axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8)},
    "ReformerModelWithLMHead": {"is_decoder": True},
    "shieldgemma2": {"yes_token_index": 5, "no_token_index": 6},
    "swin": _SWIN,
    "swinv2": _SWIN,
    "xlnet": {"d_model": 32, "n_head": 4, "d_head": 8},
    "xlstm": {"hidden_size": 32, "embedding_dim": 32, "num_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": _ZAMBA,
    "zamba2": _ZAMBA,
}  # fmt: skip
