"""Which layers of a model have experts, as its config says."""

from __future__ import annotations

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields
from ckpt_tool.mapping.megatron.kinds import require_each
from ckpt_tool.mapping.megatron.step import find_moe_list

#: How configs call every how many layers one has experts.
_STEPS = ("decoder_sparse_step", "moe_layer_interval", "interleave_moe_layer_step")
#: And before which layer none has.
_FIRSTS = ("first_k_dense_replace", "moe_layer_start_index")
#: How lists of the kinds of MLPs call experts, DeepSeek-V4's both as the last two.
_WITH_EXPERTS = ("sparse", "moe", "hash_moe")
_KINDS = (*_WITH_EXPERTS, "dense")
#: Configs with these have, on the Hub, a number for each layer in ``moe_layer_freq``.
_NUMBERED = ("hybrid_layer_pattern", "sparse_attention_config")


def find_moe_layers(keys: Fields, layers: int) -> frozenset[int]:
    """Which layers have experts, by the keys of Qwen (step, list) and DeepSeek (first, every).

    ERNIE has a step too, a first and a last one, of which -1 is that of the model.
    Where a list names the kind of each layer, as GLM-4.7-Flash has it, or those with experts, as
    Llama 4's does, nothing else counts, nor where one has a number for each, as MiMo-V2 and
    MiniMax-M3 have it on the Hub.

    MappingError for a list that has not an entry for each layer, or one that is unknown.
    """
    if keys.find_bool("enable_moe_block") is False:
        return frozenset()
    kinds = keys.texts("mlp_layer_types")
    if kinds:
        require_each(keys, "mlp_layer_types", len(kinds), layers, padded=True)
        strange = sorted(set(kinds).difference(_KINDS))
        if strange:
            raise MappingError(
                f"{keys.path}: mlp_layer_types has {strange[0]!r:.60}, expected one of"
                f" {', '.join(_KINDS)}"
            )
        return frozenset(i for i, kind in enumerate(kinds[:layers]) if kind in _WITH_EXPERTS)
    if any(keys.values.get(key) for key in _NUMBERED):
        numbers = keys.sizes("moe_layer_freq")
        if numbers:
            require_each(keys, "moe_layer_freq", len(numbers), layers, padded=True)
        return frozenset(i for i, number in enumerate(numbers[:layers]) if number)
    listed = find_moe_list(keys)
    if listed is not None:
        return frozenset(layer for layer in listed if layer < layers)
    step = keys.agreed_size(_STEPS, 1) or 1
    every = keys.size("moe_layer_freq", 1) or 1
    first = keys.agreed_size(_FIRSTS, 0)
    last = keys.find_number("moe_layer_end_index")
    dense = frozenset(keys.sizes("mlp_only_layers"))
    return frozenset(
        layer
        for layer in range(
            first, layers if last is None or last < 0 else min(layers, int(last) + 1)
        )
        if layer not in dense and (layer + 1) % step == 0 and layer % every == 0
    )
