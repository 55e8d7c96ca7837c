"""Checkpoint keys of megatron-core's local layers and of Transformer Engine's, and back.

Transformer Engine cannot be imported without a GPU. Its layers differ from the local ones in where
norms live: some are part of the linear layer that follows. So a local model whose norms' keys are
renamed reads and writes what GPU users have on disk.
"""

import re
from collections.abc import Collection

from megatron.core.dist_checkpointing.mapping import (
    ShardedBase,
    ShardedObject,
    ShardedStateDict,
)

# `decoder.layers.`, `decoder.layers.3.` or `mtp.layers.0.transformer_layer.`, and what follows.
# Modules, but not checkpoints, call the last one `mtp_model_layer` since 0.17, and in a HybridModel
# it has layers of its own.
_LAYER = re.compile(
    r"(decoder\.layers\.(?:\d+\.)?"
    r"|mtp\.layers\.\d+\.(?:transformer|mtp_model)_layer\.(?:layers\.\d+\.)?)(.+)"
)

# (local, Transformer Engine), by kind of layer.
_DENSE = {"pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight"}
_EXPERTS = {"mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight"}
_MAMBA = {"norm.weight": "mixer.in_proj.layer_norm_weight"}
#: Where the norm is by itself, as in a HybridModel here.
_LINEAR = {"input_layernorm.weight": "self_attention.in_proj.layer_norm_weight"}
_LATENT = {
    "self_attention.q_layernorm.weight": "self_attention.linear_q_up_proj.layer_norm_weight",
    "self_attention.kv_layernorm.weight": "self_attention.linear_kv_up_proj.layer_norm_weight",
}


def to_engine(keys: Collection[str]) -> dict[str, str]:
    """The Transformer Engine name of each local key; `keys` are all those of a process."""
    return {key: _renamed(key, keys, back=False) for key in keys}


def to_local(keys: Collection[str]) -> dict[str, str]:
    """The local name of each Transformer Engine key."""
    return {key: _renamed(key, keys, back=True) for key in keys}


def _renamed(key: str, keys: Collection[str], *, back: bool) -> str:
    found = _LAYER.fullmatch(key)
    if not found:
        return key
    prefix, name = found.groups()
    if f"{prefix}layer_scalar" in keys:  # Gemma 4's are what Megatron-Bridge's layers have
        return key
    if f"{prefix}mixer.A_log" in keys:
        names = {engine: local for local, engine in _MAMBA.items()} if back else _MAMBA
        return prefix + names.get(name, name)
    has_experts = f"{prefix}mlp.router.weight" in keys
    is_latent = f"{prefix}self_attention.linear_kv_down_proj.weight" in keys
    has_indexers = any(".core_attention.indexer." in key for key in keys)
    table = dict(_LATENT) if is_latent and not has_indexers else {}
    if back:
        # The local layers with latent attention keep every norm to themselves, the others none.
        table = {engine: local for local, engine in table.items()}
        table |= {engine: local for local, engine in (_DENSE if is_latent else _EXPERTS).items()}
    else:
        table |= _EXPERTS if has_experts else _DENSE
        table |= _LINEAR if f"{prefix}self_attention.A_log" in keys else {}
    return prefix + table.get(name, name)


def rename_to_engine(state: ShardedStateDict) -> None:
    """Give the sharded tensors of one model chunk their Transformer Engine keys, in place.

    The dictionary's own keys stay, so that what is loaded still fits the local model.
    """
    entries = [entry for entry in state.values() if isinstance(entry, ShardedBase)]
    names = to_engine({entry.key for entry in entries})
    for entry in entries:
        entry.key = names[entry.key]


def engine_states(state: ShardedStateDict) -> dict[str, ShardedObject]:
    """The `_extra_state` entries that only Transformer Engine's layers have.

    `state` has Transformer Engine keys already. Norms that are modules of their own have one, and
    up to megatron-core 0.14 the attention itself, which has no tensor: it goes with its norm.
    """
    found = {}
    is_newer = any(name.endswith(".layer_scalar") for name in state)  # Gemma 4 is
    for name, entry in state.items():
        module, _, kind = entry.key.rpartition(".")
        if kind == "weight" and module.endswith("norm") and not module.endswith("mixer.norm"):
            found[f"{name}._extra_state"] = _object_like(entry, f"{module}._extra_state")
        for norm in (".input_layernorm.weight", ".self_attention.linear_qkv.layer_norm_weight"):
            if entry.key.endswith(norm) and not is_newer:
                key = f"{entry.key.removesuffix(norm)}.self_attention.core_attention._extra_state"
                found[f"{name}.core_attention"] = _object_like(entry, key)
    return found


def _object_like(norm: ShardedBase, key: str) -> ShardedObject:
    """An empty state at the layer of `norm`, whose leading axis counts layers if it is stacked."""
    stacked = norm.prepend_axis_num
    shape = norm.global_shape[:stacked] or (1,)
    offset = norm.global_offset[:stacked] or (0,)
    return ShardedObject(key, None, shape, offset, norm.replica_id)
