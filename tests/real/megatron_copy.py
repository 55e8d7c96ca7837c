"""The plain way from Hugging Face tensors to a whole GPTModel: load everything, join, copy.

Nothing of `ckpt_tool` is used and nothing is clever, so that what the tool writes can be checked
against it. Every tensor of the folder must be used up, and every one of the model filled.
"""

import json
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from safetensors.torch import load_file
from torch import Tensor

from . import megatron_falcon as falcon
from . import megatron_gemma4_models as gemma4
from . import megatron_nemotron as nemotron
from .megatron_deci import is_deci
from .megatron_gated_copy import beside_prediction, delta_net, gated_query
from .megatron_gpt import HuggingFaceConfig, dense_layers, expert_count
from .megatron_hybrid import gpt_name
from .megatron_ling import lightning
from .megatron_routed import take_biases, use_plain_names
from .megatron_step import gated_query as head_gated_query

State = dict[str, Tensor]


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def read_tensors(folder: Path) -> State:
    """All tensors of all safetensors files of the folder."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def copy_into(model: GPTModel, folder: Path) -> None:
    """Fill a model that no other process has a part of."""
    config = read_config(folder)
    named = {"nemotron_h": nemotron.full_state, "falcon_h1": falcon.full_state}
    is_other = config["model_type"] in named
    state = named.get(config["model_type"], full_state)(read_tensors(folder), config)
    if any("linear_qkv_down_proj" in name for name in model.state_dict()):
        state = _fused(state)
    if hasattr(model.decoder, "layer_type_list"):  # of a HybridModel, where that norm is by itself
        fused = "self_attention.in_proj.layer_norm_weight"
        state = {name.replace(fused, "input_layernorm.weight"): t for name, t in state.items()}
    wanted = {
        # The module since 0.17, the convolution before 0.19.
        name.replace(".conv1d.", ".conv1d_")
        if is_other
        else gpt_name(model, name).replace(".mtp_model_layer.", ".transformer_layer."): tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not name.endswith("_extra_state")
    }
    assert state.keys() == wanted.keys(), f"differ: {sorted(state.keys() ^ wanted.keys())}"
    for name, tensor in wanted.items():
        assert tensor.shape == state[name].shape, f"{name}: {tensor.shape}"
        tensor.data.copy_(state[name])


def full_state(hf: State, config: HuggingFaceConfig) -> State:
    """The state of the whole GPTModel with local layers. Empties `hf`."""
    if gemma4.is_gemma4(config):
        return gemma4.full_state(hf, config)
    hf = use_plain_names(hf, config)
    state = {
        "embedding.word_embeddings.weight": hf.pop("model.embed_tokens.weight"),
        "decoder.final_layernorm.weight": hf.pop("model.norm.weight"),
    }
    if "model.norm.bias" in hf:
        state["decoder.final_layernorm.bias"] = hf.pop("model.norm.bias")
    if not config["tie_word_embeddings"]:
        state["output_layer.weight"] = hf.pop("lm_head.weight")
    depth = config["num_hidden_layers"]
    for index in range(depth):
        _put(state, f"decoder.layers.{index}.", _layer(_take(hf, index), config, index))
    repeated = (config.get("num_nextn_predict_layers") or 0) if "mtp.fc.weight" not in hf else 0
    for index in range(repeated):
        prediction = _prediction(_take(hf, depth + index), config, depth + index, state)
        _put(state, f"mtp.layers.{index}.", prediction)
    if "mtp.fc.weight" in hf:
        _put(state, "mtp.layers.0.", beside_prediction(hf))
        layer = _layer(_take(hf, 0, "mtp."), config, depth - 1)
        _put(state, "mtp.layers.0.transformer_layer.", layer)
    assert not hf, f"nothing is known of {sorted(hf)}"
    return state


def _fused(state: State) -> State:
    """With one down projection, which has the norm before it, in place of two and the norm."""
    found = {}
    for name, tensor in state.items():
        prefix, down, _ = name.rpartition("self_attention.linear_kv_down_proj.")
        if down:
            query = state[name.replace("linear_kv_", "linear_q_")]
            fused = f"{prefix}self_attention.linear_qkv_down_proj."
            found[f"{fused}weight"] = torch.cat([query, tensor])
            found[f"{fused}layer_norm_weight"] = state[f"{prefix}input_layernorm.weight"]
    dropped = ("linear_q_down_proj.weight", "linear_kv_down_proj.weight", "input_layernorm.weight")
    return {name: value for name, value in state.items() if not name.endswith(dropped)} | found


def _take(hf: State, index: int, stem: str = "model.") -> State:
    """Remove and return a layer's tensors, named from the layer on."""
    prefix = f"{stem}layers.{index}."
    return {name.removeprefix(prefix): hf.pop(name) for name in list(hf) if name.startswith(prefix)}


def _put(state: State, prefix: str, part: State) -> None:
    state.update({f"{prefix}{name}": tensor for name, tensor in part.items()})


def _layer(hf: State, config: HuggingFaceConfig, index: int) -> State:
    if "feed_forward.down_proj.weight" in hf or "feed_forward.router.weight" in hf:
        hf = _unpack(hf)
    if is_deci(config):
        return _uneven(hf, config)
    linear = delta_net(hf, config) if "linear_attn.A_log" in hf else {}
    if "attention.g_norm.weight" in hf:
        linear = lightning(hf)
    state = _norms(hf)
    if not linear:
        state["self_attention.linear_proj.weight"] = hf.pop("self_attn.o_proj.weight")
    latent = "kv_lora_rank" in config
    attention = linear or (_latent_attention(hf) if latent else _attention(hf, config))
    _put(state, "self_attention.", attention)
    state |= take_biases(hf)
    has_experts = expert_count(config) and index not in dense_layers(config)
    _put(state, "mlp.", _experts(hf, config) if has_experts else _mlp(hf, "mlp."))
    assert not hf, f"nothing is known of {sorted(hf)} in layer {index}"
    return state


def _unpack(hf: State) -> State:
    """A layer of Llama 4 as others call it, each expert by itself and as linear layers have it."""
    found = {name.replace("feed_forward.", "mlp."): tensor for name, tensor in hf.items()}
    if "mlp.router.weight" in found:
        found["mlp.gate.weight"] = found.pop("mlp.router.weight")
        both, down = (found.pop(f"mlp.experts.{name}_proj") for name in ("gate_up", "down"))
        for index, (expert, last) in enumerate(zip(both, down, strict=True)):
            gate, up = expert.t().chunk(2)
            parts = {"gate": gate, "up": up, "down": last.t()}
            _put(found, f"mlp.experts.{index}.", {f"{n}_proj.weight": t for n, t in parts.items()})
    return found


def _norms(hf: State) -> State:
    """Those outside of attention and MLP: before them, after them, or both."""
    before = {"input_layernorm": "input_layernorm", "post_attention_layernorm": "pre_mlp_layernorm"}
    if "post_feedforward_layernorm.weight" in hf:
        before = {
            "input_layernorm": "input_layernorm",
            "pre_feedforward_layernorm": "pre_mlp_layernorm",
            "post_attention_layernorm": "self_attention.linear_proj.post_layernorm",
            "post_feedforward_layernorm": "mlp.linear_fc2.post_layernorm",
        }
    beside = ("post_self_attn_layernorm", "post_mlp_layernorm")  # GLM-4's
    return {
        f"{ours}.{kind}": hf.pop(f"{theirs}.{kind}")
        for theirs, ours in (before | {name: name for name in beside}).items()
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in hf
    }


def _uneven(hf: State, config: HuggingFaceConfig) -> State:
    """A layer that may have no attention, or no MLP, and has as many groups as keys are there."""
    state = {}
    if "self_attn.k_proj.weight" in hf:
        groups = len(hf["self_attn.k_proj.weight"]) // config["head_dim"]
        state["input_layernorm.weight"] = hf.pop("input_layernorm.weight")
        state["self_attention.linear_proj.weight"] = hf.pop("self_attn.o_proj.weight")
        own = {**config, "num_key_value_heads": groups}
        _put(state, "self_attention.", _attention(hf, own))
    if hf:
        state["pre_mlp_layernorm.weight"] = hf.pop("post_attention_layernorm.weight")
        _put(state, "mlp.", _mlp(hf, "mlp."))
    assert not hf, f"nothing is known of {sorted(hf)}"
    return state


def _attention(hf: State, config: HuggingFaceConfig) -> State:
    """Queries, keys and values are interleaved: each key head follows the query heads it serves."""
    state = {}
    for kind in ("weight", "bias"):
        if f"self_attn.q_proj.{kind}" in hf:
            query, key, value = (hf.pop(f"self_attn.{which}_proj.{kind}") for which in "qkv")
            groups = config["num_key_value_heads"]
            if "v_head_dim" in config:  # then layers differ
                groups = len(key) // config["head_dim"]
            if f"self_attn.g_proj.{kind}" in hf:
                query = head_gated_query(query, hf.pop(f"self_attn.g_proj.{kind}"), groups)
            elif len(query) == 2 * config["num_attention_heads"] * (config.get("head_dim") or 0):
                query = gated_query(query, config)
            rows = []
            for group in range(groups):
                rows += [part.chunk(groups)[group] for part in (query, key, value)]
            state[f"linear_qkv.{kind}"] = torch.cat(rows)
    for which in "qk":
        if f"self_attn.{which}_norm.weight" in hf:
            state[f"{which}_layernorm.weight"] = hf.pop(f"self_attn.{which}_norm.weight")
    return state


_LATENT = {
    "q_proj": "linear_q_proj",
    "q_a_proj": "linear_q_down_proj",
    "q_a_layernorm": "q_layernorm",
    "q_b_proj": "linear_q_up_proj",
    "kv_a_proj_with_mqa": "linear_kv_down_proj",
    "kv_a_layernorm": "kv_layernorm",
    "kv_b_proj": "linear_kv_up_proj",
}
_INDEXER = {
    "wq_b.weight": "linear_wq_b.weight",
    "wk.weight": "linear_wk.weight",
    "k_norm.weight": "k_norm.weight",
    "k_norm.bias": "k_norm.bias",
    "weights_proj.weight": "linear_weights_proj.weight",
}


def _latent_attention(hf: State) -> State:
    indexer = {
        f"core_attention.indexer.{ours}": hf.pop(f"self_attn.indexer.{theirs}")
        for theirs, ours in _INDEXER.items()
        if f"self_attn.indexer.{theirs}" in hf
    }
    return indexer | {
        f"{ours}.weight": hf.pop(f"self_attn.{theirs}.weight")
        for theirs, ours in _LATENT.items()
        if f"self_attn.{theirs}.weight" in hf
    }


def _mlp(hf: State, prefix: str, names: tuple[str, str, str] = ("gate", "up", "down")) -> State:
    """A gated MLP: the two matrices that see the input become one."""
    suffix = "_proj.weight" if names[0] == "gate" else ".weight"
    if f"{prefix}gate_up_proj.weight" in hf:
        joined, down = (hf.pop(f"{prefix}{name}_proj.weight") for name in ("gate_up", "down"))
        return {"linear_fc1.weight": joined, "linear_fc2.weight": down}
    if f"{prefix}{names[0]}{suffix}" not in hf:
        up, down = (hf.pop(f"{prefix}{name}{suffix}") for name in names[1:])
        return {"linear_fc1.weight": up, "linear_fc2.weight": down}
    gate, up, down = (hf.pop(f"{prefix}{name}{suffix}") for name in names)
    return {"linear_fc1.weight": torch.cat([gate, up]), "linear_fc2.weight": down}


def _experts(hf: State, config: HuggingFaceConfig) -> State:
    is_mixtral = config["model_type"] in ("mixtral", "minimax_m2")
    block = "block_sparse_moe." if is_mixtral else "mlp."
    names = ("w1", "w3", "w2") if is_mixtral else ("gate", "up", "down")
    state = {"router.weight": hf.pop(f"{block}gate.weight")}
    for index in range(expert_count(config) or 0):
        expert = _mlp(hf, f"{block}experts.{index}.", names)
        _put(state, f"experts.local_experts.{index}.", expert)
    for bias in ("mlp.gate.", "block_sparse_moe."):
        if f"{bias}e_score_correction_bias" in hf:
            state["router.expert_bias"] = hf.pop(f"{bias}e_score_correction_bias")
    if "mlp.moe_statics.e_score_correction_bias" in hf:
        (state["router.expert_bias"],) = hf.pop("mlp.moe_statics.e_score_correction_bias")
    for shared in ("mlp.shared_expert.", "mlp.shared_experts."):
        if f"{shared}gate_proj.weight" in hf:
            _put(state, "shared_experts.", _mlp(hf, shared))
    if "mlp.shared_expert_gate.weight" in hf:
        state["shared_experts.gate_weight"] = hf.pop("mlp.shared_expert_gate.weight")
    return state


def _prediction(hf: State, config: HuggingFaceConfig, index: int, whole: State) -> State:
    """A multi-token prediction layer. Its embedding and head repeat those of the model."""
    assert torch.equal(hf.pop("embed_tokens.weight"), whole["embedding.word_embeddings.weight"])
    assert torch.equal(hf.pop("shared_head.head.weight"), whole["output_layer.weight"])
    state = {
        "final_layernorm.weight": hf.pop("shared_head.norm.weight"),
        **{f"{name}.weight": hf.pop(f"{name}.weight") for name in ("enorm", "hnorm", "eh_proj")},
    }
    _put(state, "transformer_layer.", _layer(hf, config, index))
    return state
