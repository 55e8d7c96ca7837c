"""Layers with gated DeltaNet, which megatron-core describes for Transformer Engine alone."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm

from ckpt_tool.plans.checks.megatron_child.cpu import UnknownModelError


def put_delta_net(layer: ModuleSpec) -> ModuleSpec:
    """The same layer with gated DeltaNet for its attention; the norm before it stays by itself.

    UnknownModelError where this megatron-core has none.
    """
    try:
        from megatron.core.ssm import gated_delta_net as module
    except ImportError as error:
        raise UnknownModelError("gated DeltaNet is there since 0.16") from error
    for place in (module, *(getattr(module, name, module) for name in ("common", "gdn"))):
        # The kernels are fla's, and never run here.
        vars(place).update(
            HAVE_FLA=True, chunk_gated_delta_rule=module.torch_chunk_gated_delta_rule
        )
    parts = module.GatedDeltaNetSubmodules(
        in_proj=ColumnParallelLinear, out_norm=WrappedTorchNorm, out_proj=RowParallelLinear
    )
    found, modules = copy(layer), layer.submodules
    names = modules.sharded_state_dict_keys_map.items()
    found.submodules = replace(
        modules,
        self_attention=ModuleSpec(module.GatedDeltaNet, submodules=parts),
        sharded_state_dict_keys_map={k: v for k, v in names if not k.startswith("input_layernorm")},
    )
    return found
