"""The rows of Gemma 4: Megatron-Bridge has layers of its own for it, with experts and without.

Attention is stored under keys of its kind, see :mod:`ckpt_tool.mapping.megatron.shared_kv`. Where
there are experts, the MLP beside them is their shared expert, and norms are where they are in other
models. Sources: ``gemma/*gemma4*.py`` and ``gemma_vl/*gemma4*.py`` of Megatron-Bridge 0.6.2; of
the unified model, which has no towers but a few layers that embed, ``mm_gpts/gemma4.py`` of
mcore_bridge 1.6.5.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import Around, MegatronRows, Row, Rows
from ckpt_tool.mapping.families.megatron_rows import DENSE, GROUPED

_, _QKV, *_REST = GROUPED
_KEYS_AS_VALUES = replace(
    _QKV, hf="self_attn.{q,k}_proj.weight", op="keys_as_values", shape="query,hidden key,hidden"
)
_QUERIES = replace(_QKV, hf="self_attn.q_proj.weight", op="queries_alone", shape="query,hidden")
_QUERY_NORM = Row(
    "self_attn.q_norm.weight",
    "self_attention.{q,k}_layernorm.weight",
    "query_norm",
    shape="head",
)
_SHARED = (_QUERIES, _QUERY_NORM, *(row for row in _REST if row.when != "qk_norm"))


def _name_norms(names: dict[str, str]) -> Rows:
    """Norms on the Hub, and what has each in Megatron."""
    return tuple(Row(f"{hub}.weight", megatron, shape="hidden") for hub, megatron in names.items())


_SCALAR = Row("layer_scalar", "layer_scalar", shape="one")
_DENSE_NORMS = {
    "input_layernorm": "input_layernorm.weight",
    "post_attention_layernorm": "post_self_attn_layernorm.weight",
    "pre_feedforward_layernorm": "pre_mlp_layernorm.weight",
    "post_feedforward_layernorm": "post_mlp_layernorm.weight",
}
_PER_LAYER = {
    "per_layer_input_gate.weight": "per_layer,hidden",
    "per_layer_projection.weight": "hidden,per_layer",
    "post_per_layer_input_norm.weight": "hidden",
}
_DENSE = (
    *_name_norms(_DENSE_NORMS),
    *(row for row in DENSE if row.hf.startswith("mlp.") and not row.when),
    *(Row(name, name, when="per_layer", shape=shape) for name, shape in _PER_LAYER.items()),
    _SCALAR,
)
_MOE_NORMS = {
    "input_layernorm": "self_attention.linear_qkv.layer_norm_weight",
    "post_attention_layernorm": "self_attention.linear_proj.post_layernorm.weight",
    "pre_feedforward_layernorm": "pre_shared_expert_layernorm.weight",
    "post_feedforward_layernorm_1": "mlp.post_shared_expert_layernorm.weight",
    "pre_feedforward_layernorm_2": "pre_mlp_layernorm.weight",
    "post_feedforward_layernorm_2": "mlp.post_moe_layernorm.weight",
    "post_feedforward_layernorm": "post_ffn_layernorm.weight",
}
_MOE = (
    *_name_norms(_MOE_NORMS),
    Row(
        "mlp.{gate,up}_proj.weight",
        "mlp.shared_experts.linear_fc1.weight",
        "gate_up",
        shape="ffn,hidden",
    ),
    Row("mlp.down_proj.weight", "mlp.shared_experts.linear_fc2.weight", shape="hidden,ffn"),
    Row("router.proj.weight", "mlp.router.weight", shape="experts,hidden"),
    Row("router.scale", "mlp.router.scale", shape="hidden"),
    Row("router.per_expert_scale", "mlp.router.per_expert_scale", shape="experts"),
    Row(
        "experts.gate_up_proj",
        "mlp.experts.experts.linear_fc1.weight",
        "packed",
        shape="experts,two_expert_ffn,hidden",
    ),
    Row(
        "experts.down_proj",
        "mlp.experts.experts.linear_fc2.weight",
        "packed",
        shape="experts,hidden,expert_ffn",
    ),
    _SCALAR,
)


def _make_beside(trunk: str, prefix: str) -> Rows:
    """What gives each layer an embedding of its own; ``prefix``: of the language model."""
    return tuple(
        Row(f"{trunk}{hub}.weight", f"{prefix}{megatron}.weight", when="per_layer", shape=shape)
        for hub, megatron, shape in (
            ("embed_tokens_per_layer", "per_layer_embedding", "per_layer_vocab,all_layers"),
            ("per_layer_model_projection", "per_layer_model_proj", "all_layers,hidden"),
            ("per_layer_projection_norm", "per_layer_proj_norm", "per_layer"),
        )
    )


GEMMA4 = MegatronRows(
    (_QKV, *_REST),
    _DENSE,
    _MOE,
    attentions={
        "full_attention, keys as values": (_KEYS_AS_VALUES, *_REST),
        "sliding_attention, shared": _SHARED,
        "full_attention, shared": _SHARED,
    },
    kinds_by="num_kv_shared_layers",
    flags={
        "by_kind": True,
        "qk_norm": True,
        "gelu": True,
        "norms_beside": True,
        "per_layer": ("hidden_size_per_layer_input", True),
    },
    around=Around(beside=_make_beside("model.", "")),
    defaults={
        "vocab_size": 262144,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": 262144,
        "rope_theta": 1000000.0,
        "enable_moe_block": False,
    },
)
_TOWERS = ("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio.")
GEMMA4_VL = replace(
    GEMMA4,
    around=Around(
        trunk="model.language_model.",
        towers=tuple(f"model.{tower}" for tower in _TOWERS),
        moved={f"model.{tower}": tower for tower in _TOWERS},
        towers_by={f"model.{tower}": "audio_config" for tower in _TOWERS[2:]},
        beside=_make_beside("model.language_model.", "language_model."),
    ),
)
#: Without experts, and without embeddings of the layers' own.
GEMMA4_UNIFIED_TEXT = replace(
    GEMMA4,
    moe=(),
    flags={flag: said for flag, said in GEMMA4.flags.items() if flag != "per_layer"},
    around=Around(),
)
_PROJECTION = "embedding_projection."
#: In Megatron what embeds images is one module, as in memory.
_EMBEDS = {
    **{
        f"model.vision_embedder.{name}": f"embed_vision.{name}"
        for name in ("patch_ln1.", "patch_dense.", "patch_ln2.", "pos_embedding", "pos_norm.")
    },
    f"model.embed_vision.{_PROJECTION}": f"embed_vision.multimodal_embedder.{_PROJECTION}",
    "model.embed_audio.": "embed_audio.",
}
GEMMA4_UNIFIED = replace(
    GEMMA4_UNIFIED_TEXT,
    around=Around(
        trunk="model.language_model.",
        towers=tuple(_EMBEDS),
        moved=_EMBEDS,
        towers_by={"model.embed_audio.": "audio_config"},
    ),
)
