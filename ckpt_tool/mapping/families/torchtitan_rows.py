"""torchtitan's tensors of a family: what a row's names in torchtitan are made of.

Sources: ``torchtitan/models/*/state_dict_adapter.py`` and the models beside them, of 0.2 and 0.3.
Names are spelled as both versions have them in common: :data:`SPELLINGS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: What versions add to names or call otherwise, and what it is here; 0.3 has a letter for each
#: dimension behind tensors of experts.
SPELLINGS = (
    (re.compile(r"^output\."), "lm_head."),
    (re.compile(r"\.qkv_linear\."), "."),
    (re.compile(r"\.moe\.routed_experts\.inner_experts\."), ".moe.experts."),
    (re.compile(r"(\.moe\.(?:experts\.\w+?|expert_bias))_(?:EFD|EDF|EGD|EG|ED|E)$"), r"\1"),
)


@dataclass(frozen=True, slots=True)
class TitanRow:
    """Tensors that belong together: ``titan`` and ``hf`` are their names below a layer.

    ``{a,b}`` is several of them, ``{e}`` each expert, a ``*`` at the end ``weight`` or ``bias``.
    ``op``: what is done, as :func:`~ckpt_tool.mapping.frameworks.torchtitan_ops.make_op` calls it.
    An empty ``hf``: the family has no such tensor on the Hub.
    """

    titan: str
    hf: str
    op: str = "same"


@dataclass(frozen=True, slots=True)
class TitanRows:
    """The tensors of a family: those of a layer, and those of one for multi-token prediction.

    ``base``: what is before all names of Hugging Face's. ``said``: in a few words, for people.
    """

    layer: tuple[TitanRow, ...]
    said: str
    mtp: tuple[TitanRow, ...] = ()
    base: str = ""


TOP = (
    TitanRow("tok_embeddings.*", "model.embed_tokens.*"),
    TitanRow("norm.*", "model.norm.*"),
    TitanRow("lm_head.*", "lm_head.*"),
)
_NORMS = (
    TitanRow("attention_norm.*", "input_layernorm.*"),
    TitanRow("ffn_norm.*", "post_attention_layernorm.*"),
)
_VALUE_OUT = (
    TitanRow("attention.wv.*", "self_attn.v_proj.*"),
    TitanRow("attention.wo.*", "self_attn.o_proj.*"),
)
_HALVES = (
    TitanRow("attention.wq.*", "self_attn.q_proj.*"),
    TitanRow("attention.wk.*", "self_attn.k_proj.*"),
    TitanRow("attention.wqkv.*", "self_attn.{q,k,v}_proj.*", "split_groups"),
    *_VALUE_OUT,
)
_NEIGHBOURS = (
    TitanRow("attention.wq.*", "self_attn.q_proj.*", "halve_query"),
    TitanRow("attention.wk.*", "self_attn.k_proj.*", "halve_key"),
    TitanRow("attention.wqkv.*", "self_attn.{q,k,v}_proj.*", "split_halved"),
    *_VALUE_OUT,
)
_QK_NORMS = (
    TitanRow("attention.q_norm.*", "self_attn.q_norm.*"),
    TitanRow("attention.k_norm.*", "self_attn.k_norm.*"),
)
_LATENT = (
    TitanRow("attention.wq.*", "self_attn.q_proj.*"),
    TitanRow("attention.wq_a.*", "self_attn.q_a_proj.*"),
    TitanRow("attention.q_norm.*", "self_attn.q_a_layernorm.*"),
    TitanRow("attention.wq_b.*", "self_attn.q_b_proj.*"),
    TitanRow("attention.wkv_a.*", "self_attn.kv_a_proj_with_mqa.*"),
    TitanRow("attention.kv_norm.*", "self_attn.kv_a_layernorm.*"),
    TitanRow("attention.wkv_b.*", "self_attn.kv_b_proj.*"),
    TitanRow("attention.wo.*", "self_attn.o_proj.*"),
)
_DENSE = (
    TitanRow("feed_forward.w1.*", "mlp.gate_proj.*"),
    TitanRow("feed_forward.w2.*", "mlp.down_proj.*"),
    TitanRow("feed_forward.w3.*", "mlp.up_proj.*"),
)
_EXPERTS = (
    TitanRow("moe.router.gate.weight", "mlp.gate.weight"),
    TitanRow("moe.experts.w1", "mlp.experts.{e}.gate_proj.weight", "experts"),
    TitanRow("moe.experts.w2", "mlp.experts.{e}.down_proj.weight", "experts"),
    TitanRow("moe.experts.w3", "mlp.experts.{e}.up_proj.weight", "experts"),
)
_SHARED = (
    TitanRow("moe.shared_experts.w1.*", "mlp.shared_experts.gate_proj.*"),
    TitanRow("moe.shared_experts.w2.*", "mlp.shared_experts.down_proj.*"),
    TitanRow("moe.shared_experts.w3.*", "mlp.shared_experts.up_proj.*"),
)
_NO_BIAS = (TitanRow("moe.expert_bias", ""),)
_BIAS = (TitanRow("moe.expert_bias", "mlp.gate.e_score_correction_bias"),)
_GPT_OSS = (
    TitanRow("attention.sinks", "self_attn.sinks"),
    TitanRow("moe.router.gate.*", "mlp.router.*"),
    TitanRow("moe.experts.mlp1_weight", "mlp.experts.gate_up_proj", "transpose"),
    TitanRow("moe.experts.mlp1_bias", "mlp.experts.gate_up_proj_bias"),
    TitanRow("moe.experts.mlp2_weight", "mlp.experts.down_proj", "transpose"),
    TitanRow("moe.experts.mlp2_bias", "mlp.experts.down_proj_bias"),
)
_LLAMA4_FEED_FORWARD = (
    TitanRow("feed_forward.w1.*", "feed_forward.gate_proj.*"),
    TitanRow("feed_forward.w2.*", "feed_forward.down_proj.*"),
    TitanRow("feed_forward.w3.*", "feed_forward.up_proj.*"),
    TitanRow("moe.router.gate.weight", "feed_forward.router.weight"),
    TitanRow("moe.experts.{w1,w3}", "feed_forward.experts.gate_up_proj", "join_columns"),
    TitanRow("moe.experts.w2", "feed_forward.experts.down_proj", "transpose"),
    TitanRow("moe.shared_experts.w1.*", "feed_forward.shared_expert.gate_proj.*"),
    TitanRow("moe.shared_experts.w2.*", "feed_forward.shared_expert.down_proj.*"),
    TitanRow("moe.shared_experts.w3.*", "feed_forward.shared_expert.up_proj.*"),
)
_DEEPSEEK_LAYER = (*_NORMS, *_LATENT, *_DENSE, *_EXPERTS, *_SHARED)
_LLAMA4_LAYER = (*_NORMS, *_HALVES, *_LLAMA4_FEED_FORWARD, *_NO_BIAS)
_MTP = (
    TitanRow("enorm.*", "enorm.*"),
    TitanRow("hnorm.*", "hnorm.*"),
    TitanRow("eh_proj.*", "eh_proj.*"),
    TitanRow("mtp_norm.*", "shared_head.norm.*"),
)

LLAMA = TitanRows((*_NORMS, *_NEIGHBOURS, *_DENSE), "q and k in Meta's order")
QWEN3 = TitanRows((*_NORMS, *_HALVES, *_QK_NORMS, *_DENSE), "yes")
QWEN3_MOE = TitanRows(
    (*_NORMS, *_HALVES, *_QK_NORMS, *_DENSE, *_EXPERTS, *_NO_BIAS), "experts stacked"
)
DEEPSEEK_V2 = TitanRows((*_DEEPSEEK_LAYER, *_NO_BIAS), "experts stacked")
DEEPSEEK_V3 = TitanRows((*_DEEPSEEK_LAYER, *_BIAS), "experts stacked", _MTP)
GPT_OSS = TitanRows(
    (*_NORMS, *_HALVES, *_GPT_OSS, *_NO_BIAS),
    "experts transposed",
)
LLAMA4_TEXT = TitanRows(_LLAMA4_LAYER, "experts transposed")
LLAMA4 = TitanRows(_LLAMA4_LAYER, "experts transposed", base="language_model.")
