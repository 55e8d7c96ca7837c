"""The families: which Hugging Face tensors make which megatron-core tensor.

Names are those of the Hub and those that the Transformer-Engine spec of megatron-core 0.11 to 0.16
writes. ``{q,k,v}`` in a name stands for several tensors, ``{e}`` for the number of an expert. A row
with ``when`` is there only where the family's flag of that name, or the config key that the flag
names, says so. Sources: the model classes of transformers, ``GPTModel.sharded_state_dict`` of
megatron-core, both compared by experiment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Row:
    """Hugging Face's tensors, megatron-core's tensor, and how the one becomes the other.

    ``op``: ``same``, ``vocabulary``, ``gate_up``, ``qkv``, ``stacked_qkv`` or ``swap_halves``.
    ``dtype``: the dtype that Megatron keeps the tensor in whatever the weights are, if it does.
    """

    hf: str
    megatron: str
    op: str = "same"
    when: str = ""
    dtype: str = ""


Rows = tuple[Row, ...]
Flag = Literal[True] | tuple[str, bool]


@dataclass(frozen=True, slots=True)
class Vision:
    """A vision tower: rows outside of its blocks, and rows of each block."""

    rows: Rows
    block: Rows


@dataclass(frozen=True, slots=True)
class Family:
    """The rows of a family's layers; those outside of layers are the same for all.

    ``flags``: True, or the config key that decides and what holds where the key is absent.
    ``differing``: Megatron is always given a list of layer kinds, so that layers have keys of
    their own even where all are alike.
    """

    attention: Rows
    dense: Rows
    moe: Rows = ()
    mtp: Rows = ()
    flags: dict[str, Flag] = field(default_factory=dict)
    differing: bool = False
    mtp_prefix: str = "model.layers.{after}."
    vision: Vision | None = None


TOP = (
    Row("model.embed_tokens.weight", "embedding.word_embeddings.weight", "vocabulary"),
    Row("model.norm.weight", "decoder.final_layernorm.weight"),
    Row("lm_head.weight", "output_layer.weight", "vocabulary", "untied"),
)

_GROUPED = (
    Row("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight"),
    Row("self_attn.{q,k,v}_proj.weight", "self_attention.linear_qkv.weight", "qkv"),
    Row("self_attn.{q,k,v}_proj.bias", "self_attention.linear_qkv.bias", "qkv", "qkv_bias"),
    Row("self_attn.q_norm.weight", "self_attention.q_layernorm.weight", when="qk_norm"),
    Row("self_attn.k_norm.weight", "self_attention.k_layernorm.weight", when="qk_norm"),
    Row("self_attn.o_proj.weight", "self_attention.linear_proj.weight"),
    Row("self_attn.o_proj.bias", "self_attention.linear_proj.bias", when="output_bias"),
)
_LATENT = (
    Row("input_layernorm.weight", "input_layernorm.weight"),
    Row("self_attn.q_proj.weight", "self_attention.linear_q_proj.weight", when="plain_query"),
    Row("self_attn.q_a_proj.weight", "self_attention.linear_q_down_proj.weight", when="low_query"),
    Row(
        "self_attn.q_a_layernorm.weight",
        "self_attention.linear_q_up_proj.layer_norm_weight",
        when="low_query",
    ),
    Row("self_attn.q_b_proj.weight", "self_attention.linear_q_up_proj.weight", when="low_query"),
    Row("self_attn.kv_a_proj_with_mqa.weight", "self_attention.linear_kv_down_proj.weight"),
    Row("self_attn.kv_a_layernorm.weight", "self_attention.linear_kv_up_proj.layer_norm_weight"),
    Row("self_attn.kv_b_proj.weight", "self_attention.linear_kv_up_proj.weight"),
    Row("self_attn.o_proj.weight", "self_attention.linear_proj.weight"),
)
_GATED = (
    Row("mlp.{gate,up}_proj.weight", "mlp.linear_fc1.weight", "gate_up"),
    Row("mlp.{gate,up}_proj.bias", "mlp.linear_fc1.bias", "gate_up", "mlp_bias"),
    Row("mlp.down_proj.weight", "mlp.linear_fc2.weight"),
    Row("mlp.down_proj.bias", "mlp.linear_fc2.bias", when="mlp_bias"),
)
_DENSE = (Row("post_attention_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"), *_GATED)
_FC1 = "mlp.experts.experts.{e}.linear_fc1.weight"
_FC2 = "mlp.experts.experts.{e}.linear_fc2.weight"
_MOE = (
    Row("post_attention_layernorm.weight", "pre_mlp_layernorm.weight"),
    Row("mlp.gate.weight", "mlp.router.weight"),
    Row("mlp.experts.{e}.{gate,up}_proj.weight", _FC1, "gate_up"),
    Row("mlp.experts.{e}.down_proj.weight", _FC2),
)
_MIXTRAL = (
    Row("post_attention_layernorm.weight", "pre_mlp_layernorm.weight"),
    Row("block_sparse_moe.gate.weight", "mlp.router.weight"),
    Row("block_sparse_moe.experts.{e}.{w1,w3}.weight", _FC1, "gate_up"),
    Row("block_sparse_moe.experts.{e}.w2.weight", _FC2),
)
_SHARED_GATE = (
    Row(
        "mlp.shared_expert.{gate,up}_proj.weight",
        "mlp.shared_experts.linear_fc1.weight",
        "gate_up",
    ),
    Row("mlp.shared_expert.down_proj.weight", "mlp.shared_experts.linear_fc2.weight"),
    Row("mlp.shared_expert_gate.weight", "mlp.shared_experts.gate_weight"),
)
_SHARED = (
    Row(
        "mlp.shared_experts.{gate,up}_proj.weight",
        "mlp.shared_experts.linear_fc1.weight",
        "gate_up",
        "shared_experts",
    ),
    Row(
        "mlp.shared_experts.down_proj.weight",
        "mlp.shared_experts.linear_fc2.weight",
        when="shared_experts",
    ),
    Row("mlp.gate.e_score_correction_bias", "mlp.router.expert_bias", dtype="float32"),
)
_MTP = (
    Row("enorm.weight", "enorm.weight"),
    Row("hnorm.weight", "hnorm.weight"),
    Row("eh_proj.weight", "eh_proj.weight"),
    Row("shared_head.norm.weight", "final_layernorm.weight"),
)
_MIMO_MTP = (
    Row("token_layernorm.weight", "enorm.weight"),
    Row("hidden_layernorm.weight", "hnorm.weight"),
    Row("input_proj.weight", "eh_proj.weight", "swap_halves"),
    Row("final_layernorm.weight", "final_layernorm.weight"),
)
_QWEN_VISION = Vision(
    rows=(
        Row("visual.patch_embed.proj.weight", "vision_model.patch_embed.proj.weight"),
        Row("visual.merger.ln_q.weight", "vision_model.decoder.final_layernorm.weight"),
        Row("visual.merger.mlp.0.weight", "vision_model.projection.encoder.linear_fc1.weight"),
        Row("visual.merger.mlp.0.bias", "vision_model.projection.encoder.linear_fc1.bias"),
        Row("visual.merger.mlp.2.weight", "vision_model.projection.encoder.linear_fc2.weight"),
        Row("visual.merger.mlp.2.bias", "vision_model.projection.encoder.linear_fc2.bias"),
    ),
    block=(
        Row("norm1.weight", "self_attention.linear_qkv.layer_norm_weight"),
        Row("attn.qkv.weight", "self_attention.linear_qkv.weight", "stacked_qkv"),
        Row("attn.qkv.bias", "self_attention.linear_qkv.bias", "stacked_qkv"),
        Row("attn.proj.weight", "self_attention.linear_proj.weight"),
        Row("attn.proj.bias", "self_attention.linear_proj.bias"),
        Row("norm2.weight", "mlp.linear_fc1.layer_norm_weight"),
        Row("mlp.{gate,up}_proj.weight", "mlp.linear_fc1.weight", "gate_up"),
        Row("mlp.{gate,up}_proj.bias", "mlp.linear_fc1.bias", "gate_up"),
        Row("mlp.down_proj.weight", "mlp.linear_fc2.weight"),
        Row("mlp.down_proj.bias", "mlp.linear_fc2.bias"),
    ),
)

_LLAMA = Family(
    _GROUPED,
    _DENSE,
    flags={
        "qkv_bias": ("attention_bias", False),
        "output_bias": ("attention_bias", False),
        "mlp_bias": ("mlp_bias", False),
    },
)
_DEEPSEEK = Family(_LATENT, _DENSE, _MOE + _SHARED, _MTP, differing=True)

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": Family(_GROUPED, _DENSE),
    "qwen2": Family(_GROUPED, _DENSE, flags={"qkv_bias": True}),
    "qwen3": Family(
        _GROUPED,
        _DENSE,
        flags={
            "qk_norm": True,
            "qkv_bias": ("attention_bias", False),
            "output_bias": ("attention_bias", False),
        },
    ),
    "qwen2_moe": Family(
        _GROUPED, _DENSE, _MOE + _SHARED_GATE, flags={"qkv_bias": ("qkv_bias", True)}
    ),
    "qwen3_moe": Family(
        _GROUPED,
        _DENSE,
        _MOE,
        flags={
            "qk_norm": True,
            "qkv_bias": ("attention_bias", False),
            "output_bias": ("attention_bias", False),
        },
    ),
    "mixtral": Family(_GROUPED, (), _MIXTRAL),
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "glm4_moe": Family(
        _GROUPED,
        _DENSE,
        _MOE + _SHARED,
        _MTP,
        flags={"qkv_bias": ("attention_bias", False), "qk_norm": ("use_qk_norm", False)},
        differing=True,
    ),
    "mimo": Family(
        _GROUPED,
        _DENSE,
        mtp=_MIMO_MTP,
        flags={"qkv_bias": True},
        mtp_prefix="model.mtp_layers.{number}.",
    ),
    "qwen2_5_vl": Family(_GROUPED, _DENSE, flags={"qkv_bias": True}, vision=_QWEN_VISION),
}
