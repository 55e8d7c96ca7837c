"""Gemma 4 for real ranks: its models, and the plain way from their tensors to Megatron's state.

Modules are in `megatron_gemma4`; this imports nothing of megatron-core.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

HuggingFaceConfig = Mapping[str, Any]
State = dict[str, Tensor]

_KINDS = ["sliding_attention", "sliding_attention", "full_attention"] * 2
_SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "num_hidden_layers": 6,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "head_dim": 24,
    "global_head_dim": 32,
    "attention_k_eq_v": True,
    "num_key_value_heads": 4,
    "num_global_key_value_heads": 2,
    "layer_types": _KINDS,
    "sliding_window": 5,
    "final_logit_softcapping": 3.0,
    "vocab_size_per_layer_input": 102,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": 50000.0,
            "partial_rotary_factor": 0.25,
        },
    },
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma4_text": (
        "Gemma4ForCausalLM",
        {**_SIZES, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2},
    ),
    "gemma4_moe": (
        "Gemma4ForCausalLM",
        {
            **_SIZES,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 40,
        },
    ),
}


def is_gemma4(hf: HuggingFaceConfig) -> bool:
    return hf["model_type"] == "gemma4_text"


def settle(model: Any) -> None:
    """Give each layer another scalar, and scores that are not as good as a choice.

    No number divides scores, so that those of norms around one are as large as heads are wide.
    """
    for number, layer in enumerate(model.model.layers):
        layer.layer_scalar.fill_(1 + number / 16)
        layer.self_attn.q_norm.weight.data *= 0.125


def count_groups(hub: HuggingFaceConfig, layer: int) -> int:
    """Of key and value heads of a layer that sees all."""
    own = hub["per_layer_config"][str(layer)]
    found: int = own.get("num_key_value_heads", hub["num_key_value_heads"])
    return found


_DENSE = {
    "input_layernorm": "input_layernorm.weight",
    "post_attention_layernorm": "post_self_attn_layernorm.weight",
    "pre_feedforward_layernorm": "pre_mlp_layernorm.weight",
    "post_feedforward_layernorm": "post_mlp_layernorm.weight",
    "per_layer_input_gate": "per_layer_input_gate.weight",
    "per_layer_projection": "per_layer_projection.weight",
    "post_per_layer_input_norm": "post_per_layer_input_norm.weight",
    "mlp.down_proj": "mlp.linear_fc2.weight",
}
_ROUTED = {
    "input_layernorm": "self_attention.linear_qkv.layer_norm_weight",
    "post_attention_layernorm": "self_attention.linear_proj.post_layernorm.weight",
    "pre_feedforward_layernorm": "pre_shared_expert_layernorm.weight",
    "pre_feedforward_layernorm_2": "pre_mlp_layernorm.weight",
    "post_feedforward_layernorm": "post_ffn_layernorm.weight",
    "post_feedforward_layernorm_1": "mlp.post_shared_expert_layernorm.weight",
    "post_feedforward_layernorm_2": "mlp.post_moe_layernorm.weight",
    "mlp.down_proj": "mlp.shared_experts.linear_fc2.weight",
    "router.proj": "mlp.router.weight",
}
_BESIDE = {
    "embed_tokens": "embedding.word_embeddings",
    "norm": "decoder.final_layernorm",
    "embed_tokens_per_layer": "per_layer_embedding",
    "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm",
}


def full_state(hf: State, config: HuggingFaceConfig) -> State:
    """The state of the whole model. Empties `hf`."""
    state = {
        f"{ours}.weight": hf.pop(f"model.{theirs}.weight")
        for theirs, ours in _BESIDE.items()
        if f"model.{theirs}.weight" in hf
    }
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        own = {
            name.removeprefix(prefix): hf.pop(name) for name in list(hf) if name.startswith(prefix)
        }
        found = _layer(own, config, index)
        assert not own, f"nothing is known of {sorted(own)} in layer {index}"
        state |= {f"decoder.layers.{index}.{name}": tensor for name, tensor in found.items()}
    assert not hf, f"nothing is known of {sorted(hf)}"
    return state


def _layer(hf: State, config: HuggingFaceConfig, index: int) -> State:
    routed = config["enable_moe_block"]
    names = _ROUTED if routed else _DENSE
    found = {
        ours: hf.pop(f"{theirs}.weight")
        for theirs, ours in names.items()
        if f"{theirs}.weight" in hf
    }
    shared = "mlp.shared_experts" if routed else "mlp"
    both = [hf.pop(f"mlp.{part}_proj.weight") for part in ("gate", "up")]
    found[f"{shared}.linear_fc1.weight"] = torch.cat(both)
    found["layer_scalar"] = hf.pop("layer_scalar")
    found["self_attention.linear_proj.weight"] = hf.pop("self_attn.o_proj.weight")
    if routed:
        for name in ("scale", "per_expert_scale"):
            found[f"mlp.router.{name}"] = hf.pop(f"router.{name}")
        for ours, theirs in (("1", "gate_up"), ("2", "down")):
            for number, expert in enumerate(hf.pop(f"experts.{theirs}_proj")):
                name = f"mlp.experts.local_experts.{number}.linear_fc{ours}.weight"
                found[name] = expert.contiguous()
    return found | _attention(hf, config, index)


def _attention(hf: State, config: HuggingFaceConfig, index: int) -> State:
    """Keys in place of values that are not there, and zeros in place of keys."""
    query, norm = hf.pop("self_attn.q_proj.weight"), hf.pop("self_attn.q_norm.weight")
    groups = config["num_key_value_heads"]
    if config["layer_types"][index] == "full_attention":
        groups = count_groups(config, index)
    key = hf.pop("self_attn.k_proj.weight", torch.zeros(groups * len(norm), query.shape[1]))
    parts = query, key, hf.pop("self_attn.v_proj.weight", key)
    rows = [part.chunk(groups)[group] for group in range(groups) for part in parts]
    return {
        "self_attention.linear_qkv.weight": torch.cat(rows),
        "self_attention.q_layernorm.weight": norm,
        "self_attention.k_layernorm.weight": hf.pop(
            "self_attn.k_norm.weight", torch.ones_like(norm)
        ),
    }
