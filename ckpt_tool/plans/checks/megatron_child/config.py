"""``config.json`` -> megatron-core's ``TransformerConfig``: what decides on parameters, no more."""

from __future__ import annotations

import json
from typing import Any

import torch
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from torch.nn.functional import gelu, silu

from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.megatron.linear import describe_linear
from ckpt_tool.mapping.megatron.numbers import Numbers
from ckpt_tool.mapping.megatron.training_args import MAMBA_SIZES
from ckpt_tool.plans.checks.megatron_child.cpu import call
from ckpt_tool.plans.checks.megatron_child.sparse import describe_indexer

#: Without fused kernels or initial values, which would need a GPU and its random state.
_CPU = {
    "use_cpu_initialization": True,
    "perform_initialization": False,
    "masked_softmax_fusion": False,
    "params_dtype": torch.bfloat16,
    "pipeline_dtype": torch.bfloat16,
    "bf16": True,
}
_PLAIN = {
    "normalization": "RMSNorm",
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
}
_GATED = {"activation_func": silu, "gated_linear_unit": True}


def make_text_config(
    config: ModelConfig, numbers: Numbers, *, hybrid: bool = False
) -> TransformerConfig:
    """The language model. Raises what megatron-core raises of a config that it refuses.

    A ``hybrid`` one counts attention and the MLP of each layer.
    """
    text, flags = config.text, numbers.flags
    values = {
        **_CPU,
        **_PLAIN,
        **_GATED,
        **({"normalization": "LayerNorm"} if "layer_norm" in flags else {}),
        **({"gated_linear_unit": False} if "ungated" in flags else {}),
        "num_layers": numbers.layers,
        "hidden_size": numbers.sizes["hidden"],
        "ffn_hidden_size": numbers.sizes.get("ffn") or numbers.sizes.get("expert_ffn"),
        "num_attention_heads": numbers.heads,
        "add_bias_linear": bool({"output_bias", "mlp_bias"} & flags),
        "add_qkv_bias": "qkv_bias" in flags,
        "qk_layernorm": bool({"qk_norm", "wide_norms", "latent"} & flags),
        "mtp_num_layers": numbers.mtp or None,
        "attention_output_gate": "output_gate" in flags,
    }
    if "sinks" in flags:
        values["softmax_type"] = "learnable"
    if numbers.experts:
        values |= _experts(numbers)
    values |= describe_linear(numbers.kinds, numbers.sizes)
    if hybrid:
        values |= _hybrid(config, numbers)
        for said in ("moe_layer_freq", "linear_attention_freq"):  # its pattern says it
            values.pop(said, None)
    if "sparse" in flags:
        values |= describe_indexer(numbers, hybrid=hybrid)
    if "latent" in flags:
        if "lightning" in flags:  # whose heads have a width of their own
            values["kv_channels"] = numbers.head_dim
        return call(MLATransformerConfig, **values | _latent(text))
    values |= {"num_query_groups": numbers.groups, "kv_channels": numbers.head_dim}
    if "blocks" in numbers.flags:
        return _make_uneven(config, values)
    return call(TransformerConfig, **values)


def _make_uneven(config: ModelConfig, values: dict[str, Any]) -> TransformerConfig:
    """Of layers that have sizes of their own: it reads them from the model's config."""
    from megatron.core.transformer.heterogeneous import heterogeneous_config  # since 0.12

    kind = heterogeneous_config.HeterogeneousTransformerConfig
    encoded = json.dumps(config.raw)
    return call(kind, **values | {"heterogeneous_layers_config_encoded_json": encoded})


def make_vision_config(
    vision: dict[str, Any], numbers: Numbers, *, gated: bool
) -> TransformerConfig:
    """The blocks of a vision tower. Raises what megatron-core raises of it."""
    values = {
        **_CPU,
        **_PLAIN,
        **(_GATED if gated else {"activation_func": gelu, "normalization": "LayerNorm"}),
        "num_layers": numbers.vision_layers,
        "hidden_size": vision["hidden_size"],
        "ffn_hidden_size": vision["intermediate_size"],
        "num_attention_heads": numbers.vision_heads,
        "num_query_groups": numbers.vision_groups or numbers.vision_heads,
        "add_bias_linear": True,
        "add_qkv_bias": True,
    }
    return call(TransformerConfig, **values)


def make_projection_config(vision: dict[str, Any], text: TransformerConfig) -> TransformerConfig:
    """The two linear layers from patches that are joined to the language model's width."""
    values = {
        **_CPU,
        "num_layers": 1,
        "hidden_size": text.hidden_size,
        "ffn_hidden_size": compute_joined_width(vision),
        "num_attention_heads": 1,
        "add_bias_linear": True,
        "activation_func": gelu,
        "gated_linear_unit": False,
    }
    return call(TransformerConfig, **values)


def compute_joined_width(vision: dict[str, Any]) -> int:
    """The width of a square of patches that become one token."""
    return int(vision["hidden_size"]) * int(vision.get("spatial_merge_size") or 2) ** 2


def _hybrid(config: ModelConfig, numbers: Numbers) -> dict[str, Any]:
    """The number of layers, and what those of Mamba and experts beside them are made of."""
    text = config.text
    values: dict[str, Any] = {"num_layers": len(numbers.hybrid_pattern.partition("/")[0])}
    if "latent_experts" in numbers.flags:
        values["moe_latent_size"] = text["moe_latent_size"]
    if "M" in numbers.kinds:
        values |= {name: text[key] for name, key in MAMBA_SIZES.items()}
    return values


def _latent(text: dict[str, Any]) -> dict[str, Any]:
    return {
        "multi_latent_attention": True,
        "q_lora_rank": text.get("q_lora_rank") or None,
        "kv_lora_rank": text["kv_lora_rank"],
        "qk_head_dim": text["qk_nope_head_dim"],
        "qk_pos_emb_head_dim": text["qk_rope_head_dim"],
        "v_head_dim": text["v_head_dim"],
        "rope_type": "rope",  # the default makes tables of cosines for all positions
    }


def _experts(numbers: Numbers) -> dict[str, Any]:
    values: dict[str, Any] = {
        "num_moe_experts": numbers.experts,
        "moe_router_topk": 1,  # of no account, as is what follows from it
        "moe_router_pre_softmax": True,
        "moe_router_load_balancing_type": "none",
        "moe_ffn_hidden_size": numbers.sizes["expert_ffn"],
    }
    if len(numbers.moe) < numbers.layers:
        values["moe_layer_freq"] = [int(i in numbers.moe) for i in range(numbers.layers)]
    if "expert_bias" in numbers.flags:
        values["moe_router_score_function"] = "sigmoid"
        values["moe_router_enable_expert_bias"] = True
    if {"shared_experts", "shared_gate"} & numbers.flags:
        values["moe_shared_expert_intermediate_size"] = numbers.sizes["shared_ffn"]
        values["moe_shared_expert_gate"] = "shared_gate" in numbers.flags
    return values
