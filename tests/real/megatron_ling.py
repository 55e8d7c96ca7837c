"""Ling 2.5 on the Hub, by plain names, and in megatron-core.

transformers has no class of it. All but its lightning attention computes what a DeepSeek-V3 does,
so that it is one of these with other attention in some layers, under other names. megatron-core has
no such attention: trainers bring it, and so it is here (`put_lightning`). It is computed in two
ways: here with a weight for each pair of positions, there position after position. Sources:
`modeling_bailing_moe_v2_5.py` of inclusionAI, `gpts/bailing_hybrid.py` of mcore_bridge 1.6.5.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

State = dict[str, Tensor]
HuggingFaceConfig = Mapping[str, Any]

HEADS, HEAD, GROUP, NORMS = 4, 16, 2, 2
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bailing_hybrid": (
        "DeepseekV3ForCausalLM",
        {
            "hidden_size": 32,
            "vocab_size": 101,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "q_lora_rank": 24,
            "kv_lora_rank": 20,
            "qk_nope_head_dim": 12,
            "qk_rope_head_dim": 8,  # as many as are turned of a head of the other attention
            "v_head_dim": 14,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 28,
            "n_group": 2,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.7,
            "first_k_dense_replace": 1,
            "rms_norm_eps": 1e-6,  # that of the norms of latent attention, whatever is said here
            "num_nextn_predict_layers": 1,
            "layer_group_size": GROUP,
            "group_norm_size": NORMS,
        },
    ),
}
_CONFIG = {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"}
#: DeepSeek's names and Ling's.
_NAMES = {
    "model.embed_tokens.": "model.word_embeddings.",
    ".self_attn.o_proj.": ".attention.dense.",
    ".self_attn.": ".attention.",
    ".mlp.gate.e_score_correction_bias": ".mlp.gate.expert_bias",
    ".shared_head.norm.": ".final_layernorm.",
}
_COPIES = (".embed_tokens.weight", ".shared_head.head.weight")


def is_ling(hf: HuggingFaceConfig) -> bool:
    return bool(hf["model_type"] == "bailing_hybrid")


def list_lightning(layers: int) -> list[int]:
    """The layers that have lightning attention."""
    rest = layers // GROUP * GROUP
    return [layer for layer in range(rest) if (layer + 1) % GROUP]


def make_decay(layer: int, layers: int) -> Tensor:
    """By how much each head forgets from a position to the next, as a logarithm."""
    slopes = 2.0 ** (-8 / HEADS * torch.arange(1, HEADS + 1))
    return -slopes * (1 - (layer - 1) / (layers - 1) + 1e-5)


def turn(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """The first elements of each head, by its position."""
    first, rest = states.split([cosine.shape[-1], HEAD - cosine.shape[-1]], -1)
    one, other = first.chunk(2, -1)
    turned = first * cosine + torch.cat([-other, one], -1) * sine
    return torch.cat([turned, rest], -1)


def norm_groups(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Each of so many groups of all elements by itself."""
    found = rms_norm(states.unflatten(-1, (NORMS, -1)), (len(weight) // NORMS,), eps=epsilon)
    return found.flatten(-2) * weight


class _Attention(nn.Module):
    """Lightning attention by a weight for each pair of positions: [batch, sequence, hidden]."""

    def __init__(self, hidden: int, epsilon: float, decay: Tensor) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(hidden, 3 * HEADS * HEAD, bias=False)
        self.query_layernorm = nn.RMSNorm(HEAD, epsilon)
        self.key_layernorm = nn.RMSNorm(HEAD, epsilon)
        self.g_proj = nn.Linear(hidden, HEADS * HEAD, bias=False)
        self.g_norm = nn.RMSNorm(HEADS * HEAD)
        self.dense = nn.Linear(HEADS * HEAD, hidden, bias=False)
        self._epsilon, self._decay = epsilon, decay

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> tuple[Tensor, None]:
        cosine, sine = (each[:, None] for each in position_embeddings)
        heads = self.query_key_value(hidden_states).unflatten(-1, (3, HEADS, HEAD))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        query = turn(self.query_layernorm(query), cosine, sine) * HEAD**-0.5
        key = turn(self.key_layernorm(key), cosine, sine)
        places = torch.arange(hidden_states.shape[1])
        passed = places[:, None] - places
        kept = (self._decay[:, None, None] * passed).exp().tril()
        found = (query @ key.transpose(-1, -2) * kept) @ value
        found = norm_groups(found.transpose(1, 2).flatten(2), self.g_norm.weight, self._epsilon)
        return self.dense(found * self.g_proj(hidden_states).sigmoid()), None


def replace_attention(model: Any, ahead: int) -> None:
    """Make a DeepSeek-V3, whose last layers predict further, one of these."""
    config = model.config
    layers = config.num_hidden_layers - ahead
    for layer in list_lightning(layers):
        decay = make_decay(layer, layers)
        attention = _Attention(config.hidden_size, config.rms_norm_eps, decay)
        model.model.layers[layer].self_attn = attention


def publish(state: State, config: HuggingFaceConfig) -> tuple[State, dict[str, Any]]:
    """The tensors and the config of such a model as they are on the Hub."""
    found = {}
    for name, tensor in state.items():
        if name != "model.embed_tokens.weight" and name.endswith(_COPIES):
            continue
        for old, new in _NAMES.items():
            name = name.replace(old, new)  # noqa: PLW2901
        found[name] = tensor
    said = {_CONFIG.get(key, key): value for key, value in config.items()}
    said |= {"model_type": "bailing_hybrid", "architectures": ["BailingMoeV2_5ForCausalLM"]}
    return found, said | {"head_dim": HEAD, "partial_rotary_factor": 0.5}


def use_plain_names(hf: State, config: HuggingFaceConfig) -> State:
    """The names of DeepSeek-V3, but for lightning attention."""
    found = {}
    for name, tensor in hf.items():
        layer = name.partition(".attention.")[0]
        named = dict(_NAMES)
        if f"{layer}.attention.g_norm.weight" in hf:
            del named[".self_attn."], named[".self_attn.o_proj."]
        for old, new in named.items():
            name = name.replace(new, old)  # noqa: PLW2901
        found[name] = tensor
    for number in range(config["num_nextn_predict_layers"]):
        layer = f"model.layers.{config['num_hidden_layers'] + number}."
        found[f"{layer}embed_tokens.weight"] = found["model.embed_tokens.weight"]
        found[f"{layer}shared_head.head.weight"] = found["lm_head.weight"]
    return found


def lightning(hf: State) -> State:
    """The attention of a layer as megatron-core's modules have it: query, key, value by head."""
    both = hf.pop("attention.query_key_value.weight").unflatten(0, (3, HEADS, HEAD))
    names = {
        "query_layernorm": "q_layernorm",
        "key_layernorm": "k_layernorm",
        "g_proj": "g_proj",
        "g_norm": "g_norm",
        "dense": "linear_proj",
    }
    found = {f"{new}.weight": hf.pop(f"attention.{old}.weight") for old, new in names.items()}
    return found | {"linear_qkv.weight": both.transpose(0, 1).flatten(0, 2)}


def describe(hf: HuggingFaceConfig) -> dict[str, Any]:
    """What megatron-core's config says of it."""
    if not is_ling(hf):
        return {}
    return {
        "kv_channels": hf["head_dim"],
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_num_groups": hf["n_group"],
        "moe_router_group_topk": hf["topk_group"],
        "moe_router_topk_scaling_factor": hf["routed_scaling_factor"],
        "moe_shared_expert_intermediate_size": (
            hf["moe_intermediate_size"] * hf["num_shared_experts"]
        ),
    }
