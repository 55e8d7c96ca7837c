"""The rows of Gemma 1, 2 and 3, and of EXAONE 4, whose norms come after attention and MLP.

Norms of Gemma count from one on both sides (``layernorm_zero_centered_gamma``). What multiplies
the embedding, softcaps and sliding windows are code, no weights. Sources: ``gemma/*.py``,
``gemma_vl/*.py`` and ``exaone/*.py`` of Megatron-Bridge 0.6.2.
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tool.mapping.families.megatron_form import Around, Flag, MegatronRows, Row
from ckpt_tool.mapping.families.megatron_rows import DENSE, GROUPED

_NORM, *_ATTENTION = GROUPED
_, *_GATED = DENSE
#: Megatron-Bridge has them in the linear layers that they follow.
_AFTER_ATTENTION = Row(
    "post_attention_layernorm.weight",
    "self_attention.linear_proj.post_layernorm.weight",
    shape="hidden",
)
_AFTER_MLP = Row(
    "post_feedforward_layernorm.weight", "mlp.linear_fc2.post_layernorm.weight", shape="hidden"
)
_BEFORE_MLP = Row(
    "pre_feedforward_layernorm.weight", "mlp.linear_fc1.layer_norm_weight", shape="hidden"
)
_SANDWICH = (*GROUPED, _AFTER_ATTENTION), (_BEFORE_MLP, *_GATED, _AFTER_MLP)
_COUNTED: dict[str, Flag] = {
    "zero_centred": True,
    "gelu": True,
    "qkv_bias": ("attention_bias", False),
    "output_bias": ("attention_bias", False),
}

GEMMA = MegatronRows(GROUPED, DENSE, flags=_COUNTED)
GEMMA2 = MegatronRows(*_SANDWICH, flags=_COUNTED | {"post_norms": True})
#: Their configs leave out what is their class's default.
_SIZES = {
    "rope_theta": 1000000.0,
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}
GEMMA3 = MegatronRows(
    *_SANDWICH, flags=_COUNTED | {"post_norms": True, "qk_norm": True}, defaults=_SIZES
)
GEMMA3_VL = replace(
    GEMMA3,
    around=Around(
        trunk="language_model.model.",
        head="language_model.",
        towers=("vision_tower.",),
        beside=(
            Row(
                "multi_modal_projector.mm_input_projection_weight",
                "multi_modal_projector.proj.weight",
                "turned",
                shape="vision,hidden",
                whole="hidden,vision",
            ),
            Row(
                "multi_modal_projector.mm_soft_emb_norm.weight",
                "multi_modal_projector.mm_soft_embed_norm.weight",
                shape="vision",
            ),
        ),
    ),
)
EXAONE4 = MegatronRows(
    (*_ATTENTION, _AFTER_ATTENTION),
    (*_GATED, _AFTER_MLP),
    flags={"qk_norm": True, "post_norms": True, "only_post_norms": True},
)
