"""The rows of MiniMax-M3: experts as MiniMax-M2 has them, some layers with an indexer, a tower.

megatron-core has no such indexer: Megatron-Bridge keeps their weights beside the model, where they
change no more. Source: ``minimax_m3/`` of Megatron-Bridge 0.6.2.
"""

from __future__ import annotations

from ckpt_tool.mapping.families.megatron_form import Around, MegatronRows, Row
from ckpt_tool.mapping.families.megatron_rows import DENSE, GROUPED, MIXTRAL, MIXTRAL_BIAS

_SHARED = (
    Row(
        "block_sparse_moe.shared_experts.{gate,up}_proj.weight",
        "mlp.shared_experts.linear_fc1.weight",
        "gate_up",
        shape="shared_ffn,hidden",
    ),
    Row(
        "block_sparse_moe.shared_experts.down_proj.weight",
        "mlp.shared_experts.linear_fc2.weight",
        shape="hidden,shared_ffn",
    ),
)
_INDEXERS = "lightning_indexers.{layer}."
MINIMAX_M3 = MegatronRows(
    GROUPED,
    DENSE,
    MIXTRAL + MIXTRAL_BIAS + _SHARED,
    flags={
        "qk_norm": True,
        "shared_experts": True,
        "zero_centred": ("use_gemma_norm", True),
        "clamped": True,
    },
    differing=True,
    around=Around(
        trunk="language_model.model.",
        head="language_model.",
        towers=("vision_tower.", "multi_modal_projector.", "patch_merge_mlp."),
    ),
    kinds_by="sparse_attention_config",
    apart={
        "minimax_m3_sparse": (
            Row(
                "self_attn.index_q_proj.weight",
                f"{_INDEXERS}q_proj.weight",
                shape="index_query,hidden",
            ),
            Row(
                "self_attn.index_k_proj.weight",
                f"{_INDEXERS}k_proj.weight",
                shape="index_head,hidden",
            ),
            Row("self_attn.index_q_norm.weight", f"{_INDEXERS}q_norm.weight", shape="index_head"),
            Row("self_attn.index_k_norm.weight", f"{_INDEXERS}k_norm.weight", shape="index_head"),
        )
    },
)
