"""Models whose experts or names are their own: on the Hub, by plain names, and in megatron-core.

`MODELS` are as in `megatron_models`. Ling has no class in transformers: its layers compute what
GLM-4.5-MoE's do, so that it is one of these under other names (`publish`). `use_plain_names` is the
way back for `megatron_copy`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .megatron_ling import use_plain_names as ling_names
from .megatron_step import use_plain_names as step_names

State = dict[str, Tensor]
HuggingFaceConfig = Mapping[str, Any]

_PARTIAL = {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.5}
_ROUTING = {"num_experts_per_tok": 2, "moe_intermediate_size": 40, "first_k_dense_replace": 1}
_GROUPED = {
    **_ROUTING,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "n_group": 2,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.7,
    "head_dim": 24,
    "use_qk_norm": True,
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_oss": (
        "GptOssForCausalLM",
        {
            "intermediate_size": 40,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 24,
            "layer_types": ["full_attention"] * 4,
        },
    ),
    "hy_v3": (
        "HYV3ForCausalLM",
        {
            **_ROUTING,
            "num_experts": 8,
            "num_shared_experts": 2,
            "router_scaling_factor": 1.7,
            "head_dim": 24,
            "num_nextn_predict_layers": 1,
        },
    ),
    "bailing_moe_v2": (
        "Glm4MoeForCausalLM",
        {**_GROUPED, "num_nextn_predict_layers": 1, "rope_parameters": _PARTIAL},
    ),
    "sarvam_moe": (
        "Glm4MoeForCausalLM",
        {**_GROUPED, "model_type": "sarvam_moe"},
    ),
}
MODELS["exaone_moe"] = (
    "ExaoneMoeForCausalLM",
    {
        **_GROUPED,
        "n_group": 1,
        "num_experts": 8,
        "num_shared_experts": 2,
        "num_nextn_predict_layers": 1,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse", "dense"],
    },
)
_TURNED = {"rope_type": "default", "partial_rotary_factor": 0.5}
MODELS["mimo_v2_flash"] = (
    "MiMoV2FlashForCausalLM",
    {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.7,
        "head_dim": 24,
        "v_head_dim": 16,
        "sliding_window": 64,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "rope_parameters": {
            "full_attention": {**_TURNED, "rope_theta": 50000.0},
            "sliding_attention": {**_TURNED, "rope_theta": 300.0},
        },
    },
)
#: Whose layers for multi-token prediction have no experts.
DENSE_AHEAD = ("exaone_moe", "step3p5")
#: transformers has no class for them.
UNNAMED = ("bailing_moe_v2", "step3p5", "bailing_hybrid")

_LING_CONFIG = {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"}
#: The names of Ling and Sarvam, and those of GLM-4.5-MoE.
_LING = {
    "model.word_embeddings.": "model.embed_tokens.",
    ".attention.query_layernorm.": ".self_attn.q_norm.",
    ".attention.key_layernorm.": ".self_attn.k_norm.",
    ".attention.dense.": ".self_attn.o_proj.",
    ".mlp.gate.expert_bias": ".mlp.gate.e_score_correction_bias",
}
_HUNYUAN = {
    ".mlp.router.gate.": ".mlp.gate.",
    ".mlp.shared_mlp.": ".mlp.shared_experts.",
    ".mlp.expert_bias": ".mlp.gate.e_score_correction_bias",
}
#: Of layers for multi-token prediction that have no copies of embedding and head.
_AHEAD = {".final_layernorm.": ".shared_head.norm."}


def _list_exaone(layers: int) -> dict[str, str]:
    """EXAONE's names, of one layer for multi-token prediction, and DeepSeek's."""
    ahead = f"model.layers.{layers}."
    return {
        "mtp.pre_fc_norm_embedding.": f"{ahead}enorm.",
        "mtp.pre_fc_norm_hidden.": f"{ahead}hnorm.",
        "mtp.fc.": f"{ahead}eh_proj.",
        "mtp.norm.": f"{ahead}shared_head.norm.",
        "mtp.layers.0.": ahead,
        ".mlp.e_score_correction_bias": ".mlp.gate.e_score_correction_bias",
    }


_STACKED = ".attention.query_key_value."


def publish(name: str, state: State, config: dict[str, Any]) -> tuple[State, dict[str, Any]]:
    """The tensors and the config of a model as they are on the Hub; both may be what they were."""
    if name not in ("hy_v3", "bailing_moe_v2", "exaone_moe"):
        return state, config
    layers = config["num_hidden_layers"]
    for key in ("layer_types", "mlp_layer_types"):
        config = config | ({key: config[key][:layers]} if key in config else {})
    copies = (".embed_tokens.weight", ".shared_head.head.weight")
    state = {
        key: value
        for key, value in state.items()
        if key == "model.embed_tokens.weight" or not key.endswith(copies)
    }
    if name == "exaone_moe":
        return _rename(state, {new: old for old, new in _list_exaone(layers).items()}), config
    state = _rename(state, {new: old for old, new in _AHEAD.items()})
    if name == "hy_v3":
        return state, config
    config = {_LING_CONFIG.get(key, key): value for key, value in config.items()}
    config |= {"model_type": name, "architectures": ["BailingMoeV2ForCausalLM"]}
    state = _rename(state, {new: old for old, new in _LING.items()})
    return _stack_heads(state), config


def _rename(state: State, names: Mapping[str, str]) -> State:
    found = {}
    for key, value in state.items():
        renamed = key
        for old, new in names.items():
            renamed = renamed.replace(old, new)
        found[renamed] = value
    return found


def _stack_heads(state: State) -> State:
    found = dict(state)
    for key in [key for key in state if ".self_attn.q_proj." in key]:
        parts = [found.pop(key.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        found[key.replace(".self_attn.q_proj.", _STACKED)] = torch.cat(parts)
    return found


def use_plain_names(hf: State, config: HuggingFaceConfig) -> State:
    """The names and layouts that DeepSeek's, Qwen's and most other models have."""
    rename = _PLAIN.get(config["model_type"])
    return rename(hf, config) if rename is not None else hf


def _plain_hunyuan(hf: State, config: HuggingFaceConfig) -> State:
    return _add_copies(_rename(hf, _HUNYUAN | _AHEAD), config)


def _plain_exaone(hf: State, config: HuggingFaceConfig) -> State:
    return _add_copies(_rename(hf, _list_exaone(config["num_hidden_layers"])), config)


def _plain_mimo(hf: State, config: HuggingFaceConfig) -> State:
    return _rename(hf, {".self_attn.attention_sink_bias": ".self_attn.sinks"})


def _plain_ling(hf: State, config: HuggingFaceConfig) -> State:
    found = _rename(hf, _LING | _AHEAD)
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    for key in [key for key in found if _STACKED in key]:
        whole = found.pop(key)
        head = len(whole) // (heads + 2 * groups)
        parts = whole.split([heads * head, groups * head, groups * head])
        for part, rows in zip("qkv", parts, strict=True):
            found[key.replace(_STACKED, f".self_attn.{part}_proj.")] = rows
    return _add_copies(found, config)


def _add_copies(hf: State, config: HuggingFaceConfig) -> State:
    """With the embedding and the head that layers for multi-token prediction repeat elsewhere."""
    for number in range(config.get("num_nextn_predict_layers") or 0):
        layer = f"model.layers.{config['num_hidden_layers'] + number}."
        hf[f"{layer}embed_tokens.weight"] = hf["model.embed_tokens.weight"]
        hf[f"{layer}shared_head.head.weight"] = hf["lm_head.weight"]
    return hf


def _plain_gpt_oss(hf: State, config: HuggingFaceConfig) -> State:
    found: State = {}
    for key, value in hf.items():
        stem, experts, kind = key.partition(".mlp.experts.")
        if not experts:
            found[key.replace(".mlp.router.weight", ".mlp.gate.weight")] = value
            continue
        name, end = kind.removesuffix("_bias"), "bias" if kind.endswith("_bias") else "weight"
        for number, expert in enumerate(value):
            rows = expert.T if end == "weight" else expert
            parts = {"down_proj": rows}
            if name == "gate_up_proj":
                parts = {"gate_proj": rows[::2], "up_proj": rows[1::2]}
            for part, tensor in parts.items():
                found[f"{stem}.mlp.experts.{number}.{part}.{end}"] = tensor.contiguous()
    return found


_PLAIN: dict[str, Callable[[State, HuggingFaceConfig], State]] = {
    "hy_v3": _plain_hunyuan,
    "bailing_moe_v2": _plain_ling,
    "sarvam_moe": _plain_ling,
    "gpt_oss": _plain_gpt_oss,
    "exaone_moe": _plain_exaone,
    "mimo_v2_flash": _plain_mimo,
    "step3p5": step_names,
    "bailing_hybrid": ling_names,
}


def take_biases(hf: State) -> State:
    """Remove a layer's biases and sinks, and return them as megatron-core's local layers do."""
    names = {
        "self_attn.o_proj.bias": "self_attention.linear_proj.bias",
        "self_attn.sinks": "self_attention.core_attention.softmax_offset",
        "mlp.router.bias": "mlp.router.bias",
    }
    found = {new: hf.pop(old) for old, new in names.items() if old in hf}
    for key in [key for key in hf if key.endswith("gate_proj.bias")]:
        stem = key.removesuffix("gate_proj.bias")
        number = stem.removeprefix("mlp.experts.")
        gate, up, down = (hf.pop(f"{stem}{part}_proj.bias") for part in ("gate", "up", "down"))
        found[f"mlp.experts.local_experts.{number}linear_fc1.bias"] = torch.cat([gate, up])
        found[f"mlp.experts.local_experts.{number}linear_fc2.bias"] = down
    return found


def adapt(hf: HuggingFaceConfig) -> dict[str, Any]:
    """What these models' configs say, as arguments of megatron-core's."""
    family = hf["model_type"]
    if family == "gpt_oss":
        from megatron.core.activations import quick_gelu

        return {
            "add_bias_linear": True,
            "add_qkv_bias": True,
            "activation_func": quick_gelu,
            "activation_func_clamp_value": hf["swiglu_limit"],
            "glu_linear_offset": 1.0,
            "softmax_type": "learnable",
            "moe_router_pre_softmax": False,
        }
    if family == "mimo_v2_flash":
        return _biased(hf, hf["routed_scaling_factor"])
    if family == "hy_v3":
        return _biased(hf, hf["router_scaling_factor"]) | {"qk_layernorm": True}
    if family in ("bailing_moe_v2", "sarvam_moe"):
        groups = {
            "moe_router_num_groups": hf["n_group"],
            "moe_router_group_topk": hf["topk_group"],
        }
        return _biased(hf, hf["routed_scaling_factor"]) | groups | {"qk_layernorm": True}
    if family == "exaone_moe":
        nope = [int(kind == "full_attention") for kind in hf["layer_types"]]
        return _biased(hf, hf["routed_scaling_factor"]) | {
            "qk_layernorm": True,
            "no_rope_freq": nope,
        }
    return {}


def _biased(hf: HuggingFaceConfig, scale: float) -> dict[str, Any]:
    shared = hf.get("num_shared_experts") or hf.get("n_shared_experts") or 0
    return {
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_topk_scaling_factor": scale,
        "moe_shared_expert_intermediate_size": hf["moe_intermediate_size"] * shared or None,
    }
