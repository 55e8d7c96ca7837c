"""The names of verl 0.3's own Megatron models -> those of megatron-core.

Its layers are called as on the Hub, but fused as in vLLM: ``self_attn.qkv_proj`` and
``mlp.gate_up_proj``. A rank's ``qkv_proj`` has its query heads, then its key heads, then its value
heads; the readers hand out the ranks' one after the other along a first dimension of their own.
Sources: ``verl/models/llama/megatron/layers/parallel_linear.py`` and ``checkpoint_utils/
llama_saver.py``, the same for ``qwen2``, of verl 0.3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.megatron.numbers import Numbers, read_numbers
from ckpt_tool.mapping.megatron.ops import QueryGroups
from ckpt_tool.tensors.lazy import LazyTensor, cat

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_FUSED = "self_attn.qkv_proj"
_NAMES = {
    "model.embed_tokens": "embedding.word_embeddings",
    "model.norm": "decoder.final_layernorm",
    "lm_head": "output_layer",
}
_MODULES = {
    _FUSED: "self_attention.linear_qkv",
    "self_attn.o_proj": "self_attention.linear_proj",
    "mlp.gate_up_proj": "mlp.linear_fc1",
    "mlp.down_proj": "mlp.linear_fc2",
}
_NORMS = {
    "input_layernorm": "self_attention.linear_qkv.layer_norm_weight",
    "post_attention_layernorm": "mlp.linear_fc1.layer_norm_weight",
}


def use_core_names(
    tensors: Mapping[str, LazyTensor], config: ModelConfig
) -> Mapping[str, LazyTensor]:
    """The tensors of a model of verl 0.3 as megatron-core has them; any others as they are.

    MappingError where a fused tensor does not have the rows that the config says.
    """
    if not any(_is_fused(name) for name in tensors):
        return tensors
    numbers = read_numbers(config)
    found, faults = {}, []
    for name, tensor in tensors.items():
        try:
            whole = _group_rows(tensor, numbers) if _is_fused(name) else tensor
            found[_name_core_key(name)] = whole
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise MappingError(f"fused query, key and value are not what {config.path} says", faults)
    return found


def _is_fused(name: str) -> bool:
    matched = _LAYER.fullmatch(name)
    return matched is not None and matched[2] == _FUSED


def _name_core_key(name: str) -> str:
    """Megatron-core's name; what has none keeps its own, and is then unexpected."""
    matched = _LAYER.fullmatch(name)
    if matched is None:
        module, _, kind = name.rpartition(".")
        return f"{_NAMES[module]}.{kind}" if module in _NAMES else name
    layer, module, kind = matched.groups()
    if module in _NORMS:
        return f"decoder.layers.{layer}.{_NORMS[module]}"
    return f"decoder.layers.{layer}.{_MODULES.get(module, module)}.{kind}"


def _group_rows(ranks: LazyTensor, numbers: Numbers) -> LazyTensor:
    """The rows of all ranks in the order of query groups; ValueError where they do not fit."""
    count = ranks.shape[0] if len(ranks.shape) > 1 else 0
    op = QueryGroups(numbers.heads, numbers.groups, numbers.head_dim)
    rows = sum(op.rows)
    if not count or numbers.groups % count or ranks.shape[1] * count != rows:
        raise ValueError(
            f"{list(ranks.shape)}, expected {rows} rows in all, of {numbers.heads} query heads and"
            f" {numbers.groups} query groups, divided evenly among tensor parallel ranks"
        )
    parts: list[list[LazyTensor]] = [[], [], []]
    for number in range(count):
        rank, at = ranks.select(0, number), 0
        for part, all_rows in zip(parts, op.rows, strict=True):
            part.append(rank.narrow(0, at, all_rows // count))
            at += all_rows // count
    return cat(op.join([cat(part, 0) for part in parts])[0], 0)
