"""The rows of latent attention that an indexer makes sparse: GLM-5 and DeepSeek-V3.2.

The indexer wants queries and keys after their norms, which are therefore modules of their own.
Sources: ``experimental_attention_variant/dsa.py`` of megatron-core 0.19; ``glm_moe_dsa/`` of
Megatron-Bridge 0.6.2.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import Ahead, MegatronRows, Row
from ckpt_tool.mapping.families.megatron_rows import (
    DENSE,
    LATENT,
    MOE,
    MTP,
    ROUTER_BIAS,
    SHARED,
)

_ALONE = {
    "self_attn.q_a_layernorm.weight": "self_attention.q_layernorm.weight",
    "self_attn.kv_a_layernorm.weight": "self_attention.kv_layernorm.weight",
}
_INDEXER = "self_attention.core_attention.indexer."
#: Of a layer that takes what the indexer of one before has chosen.
SHARING = tuple(replace(row, megatron=_ALONE.get(row.hf, row.megatron)) for row in LATENT)
SPARSE = (
    *SHARING,
    Row(
        "self_attn.indexer.wq_b.weight",
        f"{_INDEXER}linear_wq_b.weight",
        shape="index_query,query_rank",
    ),
    Row("self_attn.indexer.wk.weight", f"{_INDEXER}linear_wk.weight", shape="index_head,hidden"),
    Row("self_attn.indexer.k_norm.weight", f"{_INDEXER}k_norm.weight", shape="index_head"),
    Row("self_attn.indexer.k_norm.bias", f"{_INDEXER}k_norm.bias", shape="index_head"),
    Row(
        "self_attn.indexer.weights_proj.weight",
        f"{_INDEXER}linear_weights_proj.weight",
        shape="index_heads,hidden",
    ),
)

DEEPSEEK_V32 = MegatronRows(
    SPARSE,
    DENSE,
    MOE + SHARED + ROUTER_BIAS,
    Ahead(MTP),
    flags={"sparse": True},
    differing=True,
)
GLM5 = replace(DEEPSEEK_V32, attentions={"shared": SHARING}, kinds_by="indexer_types")
