"""Gemma 4 as modules are called: in files of single ranks, and in ms-swift's.

Only Megatron-Bridge's ``torch_dist`` has attention under the name of its kind. ms-swift has layers
of its own, whose names are others; what nothing reads it does not have: keys for values are once in
``linear_qkv``, and layers that share keys and values have queries alone. Source: ``mm_gpts/gemma4.
py`` of mcore_bridge 1.6.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from ckpt_tool.mapping.megatron.bindings import Binding
from ckpt_tool.mapping.megatron.ops import Same
from ckpt_tool.mapping.megatron.shared_kv_ops import (
    KeysAsValues,
    KeysOnce,
    QueriesAlone,
    QueryNorm,
)

_OF_KIND = re.compile(r"\.self_attention_(?:sliding|global)\.")
#: No other trainer's layers have it.
_SWIFT = re.compile(r"\bdecoder\.layers\.(?:\d+\.)?post_feedforward_layernorm\.weight$")
_NAME = re.compile(r"((?:language_model\.)?(?:decoder\.layers\.(?:\d+\.)?)?)(.+)")
_SWIFT_DENSE = {
    "per_layer_embedding.weight": "embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "per_layer_projection_norm.weight",
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "post_self_attn_layernorm.weight": "post_attention_layernorm.weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "post_mlp_layernorm.weight": "post_feedforward_layernorm.weight",
}
_SWIFT_EXPERTS = {
    "self_attention.linear_proj.post_layernorm.weight": "post_attention_layernorm.weight",
    "pre_shared_expert_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "mlp.shared_experts.linear_fc1.weight": "mlp.linear_fc1.weight",
    "mlp.shared_experts.linear_fc2.weight": "mlp.linear_fc2.weight",
    "mlp.post_shared_expert_layernorm.weight": "post_feedforward_layernorm_1.weight",
    "pre_mlp_layernorm.weight": "experts_mlp.pre_feedforward_layernorm_2.weight",
    "mlp.router.weight": "experts_mlp.router.weight",
    "mlp.router.scale": "experts_mlp.scale",
    "mlp.router.per_expert_scale": "experts_mlp.per_expert_scale",
    "mlp.experts.experts.linear_fc1.weight": "experts_mlp.experts.experts.linear_fc1.weight",
    "mlp.experts.experts.linear_fc2.weight": "experts_mlp.experts.experts.linear_fc2.weight",
    "mlp.post_moe_layernorm.weight": "post_feedforward_layernorm_2.weight",
    "post_ffn_layernorm.weight": "post_feedforward_layernorm.weight",
}


def name_modules(
    bindings: Sequence[Binding], keys: Collection[str], *, experts: bool
) -> list[Binding]:
    """The bindings to what ``keys`` have, where these do not have attention by its kind.

    ``experts``: whether layers have some.
    """
    if any(map(_OF_KIND.search, keys)):
        return list(bindings)
    plain = [
        replace(each, names=tuple(_OF_KIND.sub(".self_attention.", name) for name in each.names))
        for each in bindings
    ]
    if not any(map(_SWIFT.search, keys)):
        return plain
    names = _SWIFT_EXPERTS if experts else _SWIFT_DENSE
    return [_name_as_swift(each, names) for each in plain]


def _name_as_swift(binding: Binding, names: dict[str, str]) -> Binding:
    op = binding.op
    if isinstance(op, KeysAsValues):
        return replace(binding, op=KeysOnce(op.groups))
    if isinstance(op, QueriesAlone | QueryNorm):
        return replace(binding, op=Same(), names=binding.names[:1])
    found = (_NAME.fullmatch(name) for name in binding.names)
    parts = [(each[1], each[2]) for each in found if each]
    return replace(binding, names=tuple(where + names.get(name, name) for where, name in parts))
