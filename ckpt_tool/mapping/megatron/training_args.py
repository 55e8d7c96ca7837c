"""``config.json`` -> the arguments that Megatron-LM would have written beside these weights.

Its loader compares some of them with the run's (layers, hidden size, heads), and
``--use-checkpoint-args`` takes the others over. What it never restores (MLA's sizes, RoPE scaling,
``norm_epsilon``, ``qk_layernorm``) has to be on the command line of the run; it is listed here all
the same. Source: ``megatron/training/checkpointing.py`` and ``arguments.py`` of Megatron-LM.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ckpt_tool.common.untrusted import Fields
from ckpt_tool.mapping.megatron.linear import describe_linear
from ckpt_tool.mapping.megatron.numbers import Numbers, require_rows
from ckpt_tool.mapping.megatron.rules import Rules
from ckpt_tool.mapping.megatron.sizes import read_text
from ckpt_tool.mapping.megatron.step import name_first_rotary

#: Arguments that are a config's value under another name: argument -> config keys, first found.
_SAME = {
    "hidden_size": ("hidden_size",),
    "max_position_embeddings": ("max_position_embeddings",),
    "seq_length": ("max_position_embeddings",),
    "norm_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "moe_router_topk": ("num_experts_per_tok", "moe_k", "moe_top_k", "top_k_experts"),
    "moe_router_topk_scaling_factor": (
        "routed_scaling_factor",
        "router_scaling_factor",
        "moe_router_scaling_factor",
    ),
    "moe_router_num_groups": ("n_group",),
    "moe_router_group_topk": ("topk_group",),
    "q_lora_rank": ("q_lora_rank",),
    "kv_lora_rank": ("kv_lora_rank",),
    "qk_head_dim": ("qk_nope_head_dim",),
    "qk_pos_emb_head_dim": ("qk_rope_head_dim",),
    "v_head_dim": ("v_head_dim",),
    "dsa_indexer_n_heads": ("index_n_heads",),
    "dsa_indexer_head_dim": ("index_head_dim",),
    "dsa_indexer_topk": ("index_topk",),
    "moe_latent_size": ("moe_latent_size",),
}

#: The sizes of Mamba's mixers: argument, which is a field of megatron-core's config -> config key.
MAMBA_SIZES = {
    "mamba_state_dim": "ssm_state_size",
    "mamba_head_dim": "mamba_head_dim",
    "mamba_num_groups": "n_groups",
    "mamba_num_heads": "mamba_num_heads",
}

#: The same for every family here.
_CONSTANT = {
    "position_embedding_type": "rope",
    "use_rotary_position_embeddings": True,
    "add_position_embedding": True,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "make_vocab_size_divisible_by": 1,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "expert_model_parallel_size": 1,
    "world_size": 1,
    "data_parallel_size": 1,
    "ckpt_format": "torch_dist",
    "no_save_optim": True,
    "no_save_rng": True,
    "consumed_train_samples": 0,
    "skipped_train_samples": 0,
    "consumed_valid_samples": 0,
}


def make_args(rules: Rules) -> dict[str, Any]:
    """The arguments by name: plain values only, as a restricted loader accepts them."""
    text, numbers = rules.config.text, rules.numbers
    found = dict(_CONSTANT)
    for name, keys in _SAME.items():
        value = text.get(Fields(text, rules.config.path).agree(*keys))
        if value is not None:
            found[name] = value
    bias = {"output_bias", "mlp_bias"} & numbers.flags
    found |= {
        "num_layers": numbers.layers,
        **({"ffn_hidden_size": numbers.sizes["ffn"]} if "ffn" in numbers.sizes else {}),
        "num_attention_heads": numbers.heads,
        "num_query_groups": numbers.groups,
        "group_query_attention": numbers.groups < numbers.heads,
        "kv_channels": numbers.head_dim,
        "vocab_size": numbers.vocab_size,
        "padded_vocab_size": numbers.padded_vocab_size,
        "untie_embeddings_and_output_weights": bool({"untied", "value"} & numbers.flags),
        "add_qkv_bias": "qkv_bias" in numbers.flags,
        "add_bias_linear": bool(bias),
        "qk_layernorm": bool({"qk_norm", "wide_norms", "latent"} & numbers.flags),
        "rotary_interleaved": "interleaved" in numbers.flags,
        "multi_latent_attention": "latent" in numbers.flags,
        "mtp_num_layers": numbers.mtp or None,
        "experimental_attention_variant": "dsa" if "sparse" in numbers.flags else None,
        "attention_output_gate": "output_gate" in numbers.flags,
    }
    return (
        found
        | _make_layers(numbers.flags)
        | (_make_gpt_oss(text) if "quick_geglu" in numbers.flags else {})
        | _make_linear(numbers)
        | _make_rotary(read_text(require_rows(rules.config), rules.config))
        | (_make_experts(rules) if numbers.experts else {})
        | (_make_hybrid(rules) if rules.layout == "hybrid" else {})
        | (_make_blocks(rules) if "blocks" in numbers.flags else {})
    )


def describe_content(rules: Rules) -> dict[str, Any]:
    """What Megatron-LM's loader is told about the keys: it asks for those that follow from it."""
    stacked = rules.layout == "stacked" or require_rows(rules.config).around.has_radio
    return {
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
        "non_homogeneous_layers": not stacked,
    }


def _make_hybrid(rules: Rules) -> dict[str, Any]:
    """What tells its loader that the model is a HybridModel; it counts each part of a layer."""
    pattern = rules.numbers.hybrid_pattern
    if not rules.numbers.kinds and "patterned" in rules.numbers.flags:
        return {}  # Falcon-H1's layers have no symbol
    found: dict[str, Any] = {"hybrid_layer_pattern": pattern}
    found["num_layers"] = len(pattern.partition("/")[0])
    return found | _make_mamba(rules)


def _make_blocks(rules: Rules) -> dict[str, Any]:
    """The config itself, from which it takes the sizes of each layer; of groups the first."""
    return {
        "heterogeneous_layers_config_encoded_json": json.dumps(rules.config.raw),
        "num_query_groups": next(filter(None, (one.groups for one in rules.numbers.blocks)), None),
    }


def _make_mamba(rules: Rules) -> dict[str, Any]:
    """The sizes of Mamba's mixers, and what else a model with some has otherwise."""
    text, flags = Fields(rules.config.text, rules.config.path), rules.numbers.flags
    found: dict[str, Any] = {}
    if "M" in rules.numbers.kinds:
        found = {name: text.size(key) for name, key in MAMBA_SIZES.items()}
    if "no_positions" in flags:
        found |= {"position_embedding_type": "none", "use_rotary_position_embeddings": False}
    return found


def _make_linear(numbers: Numbers) -> dict[str, Any]:
    found = describe_linear(numbers.kinds, numbers.sizes)
    return {"experimental_attention_variant": "gated_delta_net", **found} if found else {}


def _make_layers(flags: frozenset[str]) -> dict[str, Any]:
    """Norms and MLPs; of a gate with another function than SwiGLU's it has no argument."""
    return {
        "normalization": "LayerNorm" if "layer_norm" in flags else "RMSNorm",
        "apply_layernorm_1p": "zero_centred" in flags,
        "swiglu": not {"gelu", "ungated", "quick_geglu", "clamped"} & flags,
        "squared_relu": "ungated" in flags,
    }


def _make_gpt_oss(text: Mapping[str, Any]) -> dict[str, Any]:
    """Its experts and its attention, in arguments that are there since 0.15."""
    return {
        "quick_geglu": True,
        "glu_linear_offset": 1.0,
        "activation_func_clamp_value": text.get("swiglu_limit", 7.0),
        "softmax_type": "learnable",
    }


def _make_rotary(text: Fields) -> dict[str, Any]:
    """By the config, or the defaults that most classes have."""
    text = name_first_rotary(text)
    rope = text.inside("rope_parameters")
    if "full_attention" in rope.values:  # where layers with a window have another one
        rope = rope.inside("full_attention")
    # MiniMax says how much of a head it turns, not which share.
    turned, head = text.find_number("rotary_dim"), text.find_number("head_dim")
    theta, share = (
        rope.find_number(key) or text.find_number(key) or default
        for key, default in (
            ("rope_theta", 10000.0),
            ("partial_rotary_factor", (turned / head) if turned and head else 1.0),
        )
    )
    return {
        "rotary_base": int(theta) if theta.is_integer() else theta,
        "rotary_percent": share,
    }


def _make_experts(rules: Rules) -> dict[str, Any]:
    text, numbers = rules.config.text, rules.numbers
    layers = [int(layer in numbers.moe) for layer in range(numbers.layers)]
    biased = "expert_bias" in numbers.flags
    sigmoid = biased or "sigmoid" in numbers.flags
    return {
        "num_experts": numbers.experts,
        "moe_ffn_hidden_size": numbers.sizes.get("expert_ffn"),
        "moe_layer_freq": layers,
        "moe_shared_expert_intermediate_size": numbers.sizes.get("shared_ffn"),
        "moe_router_score_function": "sigmoid" if sigmoid else "softmax",
        "moe_router_enable_expert_bias": biased,
        "moe_router_pre_softmax": biased or text.get("norm_topk_prob") is False,
        "moe_grouped_gemm": True,
    }
