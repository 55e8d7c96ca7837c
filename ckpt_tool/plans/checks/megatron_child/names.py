"""Checkpoint keys of megatron-core's local layers -> those of Transformer Engine's layers.

Transformer Engine cannot be imported without a GPU, but its keys are what is on disk. Its layers
differ from the local ones in where norms live: some are part of the linear layer that follows.
Sources: ``gpt_layer_specs.py`` of megatron-core 0.11 to 0.19, both specs compared.
"""

from __future__ import annotations

from collections.abc import Iterable

from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedObject

from ckpt_tool.mapping.megatron.keys import name_engine_keys
from ckpt_tool.plans.checks.megatron_child.cpu import read_release

#: Up to this release attention itself had a state, although it has no parameters.
_LAST_WITH_ATTENTION = (0, 14)


def rename_to_engine(entries: Iterable[ShardedBase]) -> None:
    """Give the entries of a whole local model the keys of Transformer Engine's layers."""
    entries = list(entries)
    names = name_engine_keys({entry.key for entry in entries})
    for entry in entries:
        entry.key = names[entry.key]


def list_engine_states(tensors: Iterable[ShardedTensor]) -> list[ShardedObject]:
    """The ``_extra_state`` entries that only Transformer Engine's layers ask for.

    ``tensors`` have its keys already. Norms that are modules of their own have one; so has the
    attention of older releases.
    """
    old = read_release() <= _LAST_WITH_ATTENTION
    found = []
    for tensor in tensors:
        module, _, kind = tensor.key.rpartition(".")
        if kind != "weight":
            continue
        if module.endswith("norm") and not module.endswith("mixer.norm"):
            found.append(_state_beside(tensor, module))
        if old and module.endswith("self_attention.linear_proj"):
            attention = module.removesuffix("linear_proj") + "core_attention"
            found.append(_state_beside(tensor, attention))
    return found


def _state_beside(tensor: ShardedTensor, module: str) -> ShardedObject:
    """The state of ``module``, in the layer of ``tensor``: leading axes count stacked layers."""
    stacked = tensor.prepend_axis_num
    shape = tensor.global_shape[:stacked] or (1,)
    offset = tensor.global_offset[:stacked] or (0,)
    return ShardedObject(f"{module}._extra_state", None, shape, offset)
