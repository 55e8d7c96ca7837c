"""The rows of Ling and Ring 2.5: lightning attention, and latent attention after so many layers.

Lightning attention has one tensor of all query, key and value heads, of each as many, and a gate
and a norm of all that the heads give. megatron-core has no such modules: ms-swift and AReaL bring
them, and call gate and norm otherwise. The norm before attention is by itself in all layers. Ling
3, which has the same model type, has other layers. Sources: ``modeling_bailing_moe_v2_5.py`` of
inclusionAI; mcore_bridge 1.6.5 (``gpts/bailing_hybrid.py``); AReaL 1.0
(``models/mcore/bailing_moe.py``, ``lightning_attention.py``).
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import Row
from ckpt_tool.mapping.families.megatron_rows import LATENT
from ckpt_tool.mapping.families.routed_rows import BAILING_V2, LING_NORMS

_LATENT = tuple(
    replace(row, hf=row.hf.replace("self_attn.", "attention.").replace("o_proj.", "dense."))
    for row in LATENT
)
_LIGHTNING = (
    Row("input_layernorm.weight", "input_layernorm.weight", shape="hidden"),
    Row(
        "attention.query_key_value.weight",
        "self_attention.linear_qkv.weight",
        "alike_qkv",
        shape="three_query,hidden",
    ),
    *LING_NORMS,
    Row("attention.g_proj.weight", "self_attention.g_proj.weight", shape="query,hidden"),
    Row("attention.g_norm.weight", "self_attention.g_norm.weight", shape="query"),
    Row("attention.dense.weight", "self_attention.linear_proj.weight", shape="hidden,query"),
)
LING_2_5 = replace(
    BAILING_V2,
    attention=_LATENT,
    attentions={"lightning_attention": _LIGHTNING},
    kinds_by="layer_group_size",
    flags={"qk_norm": ("use_qk_norm", True), "lightning": True},
)
