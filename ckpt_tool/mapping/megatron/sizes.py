"""Sizes of dimensions by the words that the tables use; only what the config says."""

from __future__ import annotations

from ckpt_tool.common.untrusted import Fields
from ckpt_tool.mapping.config import EXPERT_KEYS, ModelConfig
from ckpt_tool.mapping.families.megatron_form import MegatronRows
from ckpt_tool.mapping.megatron.compressed import read_compressed_sizes
from ckpt_tool.mapping.megatron.linear import read_linear_sizes
from ckpt_tool.mapping.megatron.pools import take_pools
from ckpt_tool.mapping.megatron.step import read_sliding_sizes

#: How configs call the number of experts that see every token; the sizes have their width.
SHARED_KEYS = ("n_shared_experts", "moe_num_shared_experts", "num_shared_experts")
#: How they call the width of those together.
_SHARED_WIDTHS = (
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "share_expert_dim",
    "share_expert_dims",
)
#: Heads of an indexer and their width; and what MiniMax-M3 calls them on the Hub.
_INDEX_KEYS = (
    ("index_n_heads", "sparse_num_index_heads"),
    ("index_head_dim", "sparse_index_dim"),
)
#: Heads, their width, groups, the state of a head, and what the convolution sees. Falcon-H1 says
#: how wide heads are together.
_MAMBA_KEYS = (
    ("mamba_num_heads", "mamba_n_heads"),
    ("mamba_head_dim",),
    ("n_groups", "mamba_n_groups"),
    ("ssm_state_size", "mamba_d_state"),
    ("conv_kernel", "mamba_d_conv"),
)


def read_text(family: MegatronRows, config: ModelConfig) -> Fields:
    """The language model's config; what it leaves out, or has null for, as its class has it."""
    text = config.text
    absent = {key: size for key, size in family.defaults.items() if text.get(key) is None}
    found = Fields(text | absent, config.path, assumed=frozenset(absent))
    return take_pools(found) if "pools" in family.flags else found


def find_head_dim(text: Fields) -> int:
    """The width of a head of plain attention: Nemotron-H has another name for it."""
    share = text.size("hidden_size") // max(text.size("num_attention_heads"), 1)
    return text.agreed_size(("head_dim", "attention_head_dim"), share)


def find_groups(text: Fields) -> int:
    """How many heads keys and values have: Step-3.5 has another name for it."""
    keys = ("num_key_value_heads", "num_attention_groups")
    return text.agreed_size(keys, text.size("num_attention_heads"))


def read_sizes(text: Fields, vision: Fields) -> dict[str, int]:
    """The size of each word, of the language model and of the tower."""
    heads, hidden = text.size("num_attention_heads"), text.size("hidden_size")
    head = find_head_dim(text)
    ffn, expert = text.size("intermediate_size", 0), text.size("moe_intermediate_size", 0)
    count = text.agreed_size(SHARED_KEYS, 0)
    shared = text.size("shared_intermediate_size", 0) * (count or 1) or count * expert
    if text.values.get("intermediate_size_mlp"):  # Llama 4's, whose experts have the other width
        expert, shared, ffn = ffn, ffn, text.size("intermediate_size_mlp")
    if text.values.get("dense_intermediate_size"):  # and MiniMax-M3's
        expert, ffn = ffn, text.size("dense_intermediate_size")
    nope, rope, value, rank = (
        text.size(key, 0)
        for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
    )
    width = vision.size("hidden_size", 0)
    per_layer = text.size("hidden_size_per_layer_input", 0)
    parts, shared_by = vision.size("num_heads", 1) or 1, vision.size("num_key_value_heads", 0)
    groups = find_groups(text)
    indexer = text.beside("sparse_attention_config")
    index_heads, index_head = (indexer.agreed_size(keys, 0) for keys in _INDEX_KEYS)
    sliding = text.size("swa_num_key_value_heads", 2 * groups)
    found = {
        "one": 1,
        "two": 2,
        "vocab": text.size("vocab_size"),
        "hidden": hidden,
        "two_hidden": 2 * hidden,
        "head": head,
        "heads": heads,
        "query": heads * head,
        "two_query": 2 * heads * head,
        "three_query": 3 * heads * head,
        "key": groups * head,
        "value": groups * value,
        "value_head": value,
        "swa_groups": sliding,
        "swa_key": sliding * head,
        "swa_value": sliding * value,
        "query_key_value": (heads + 2 * groups) * head,
        "ffn": ffn,
        "two_ffn": 2 * ffn,
        "expert_ffn": expert or ffn,
        "two_expert_ffn": 2 * (expert or ffn),
        "vision_expert_ffn": text.size("vision_moe_intermediate_size", 0),
        "expert_hidden": text.size("moe_latent_size", 0) or hidden,
        "shared_ffn": text.agreed_size(_SHARED_WIDTHS, 0) or shared,
        "experts": text.agreed_size(EXPERT_KEYS, 0),
        "per_layer": per_layer,
        "all_layers": per_layer * text.size("num_hidden_layers", 0),
        "per_layer_vocab": text.size("vocab_size_per_layer_input", 0),
        "query_rank": text.size("q_lora_rank", 0),
        "latent_query": heads * (nope + rope),
        "latent_out": heads * value,
        "kv_rank": rank,
        "kv_down": rank + rope,
        "kv_up": heads * (nope + value),
        "index_head": index_head,
        "index_heads": index_heads,
        "index_query": index_heads * index_head,
        "vision": width,
        "vision_qkv": width + 2 * (shared_by * (width // parts) if shared_by else width),
        "positions": vision.size("num_position_embeddings", 0),
        "vision_ffn": vision.size("intermediate_size", 0),
        "merged": width * vision.size("spatial_merge_size", 2) ** 2,
        **read_linear_sizes(text),
        **read_sliding_sizes(text, heads, groups, head),
        **read_compressed_sizes(text, heads, head),
    }
    return {word: size for word, size in (found | _read_mamba(text)).items() if size}


def _read_mamba(text: Fields) -> dict[str, int]:
    """Those of Mamba's mixers, by the keys of Nemotron-H or of Falcon-H1."""
    heads, head, groups, state, kernel = (text.agreed_size(keys, 0) for keys in _MAMBA_KEYS)
    inner = heads * head or text.size("mamba_d_ssm", 0)
    inner, states = inner or text.size("mamba_expand", 0) * text.size("hidden_size"), groups * state
    return {
        "mamba_heads": heads,
        "mamba_inner": inner,
        "mamba_state": states,
        "mamba_in": 2 * (inner + states) + heads,
        "mamba_conv": inner + 2 * states,
        "mamba_kernel": kernel,
    }
