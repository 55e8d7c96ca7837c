"""Shard a model as verl does, and take the state dict that verl would save."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    ShardedStateDictConfig,
    ShardingStrategy,
    StateDictType,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from .fsdp_cases import Case

# The layouts say nothing about the files; without them torch assumes that norms shard the sequence.
_TENSOR_PARALLEL: dict[str, ParallelStyle] = {
    "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
    "model.layers.*.self_attn.q_proj": ColwiseParallel(),
    "model.layers.*.self_attn.k_proj": ColwiseParallel(),
    "model.layers.*.self_attn.v_proj": ColwiseParallel(),
    "model.layers.*.self_attn.o_proj": RowwiseParallel(),
    "model.layers.*.mlp.gate_proj": ColwiseParallel(),
    "model.layers.*.mlp.up_proj": ColwiseParallel(),
    "model.layers.*.mlp.down_proj": RowwiseParallel(),
    "lm_head": ColwiseParallel(output_layouts=Replicate()),
}


def sharded_state_dict(model: nn.Module, case: Case) -> dict[str, Any]:
    """Shard `model` in place over the ranks as `case` says; this rank's part of the state dict."""
    mesh = (
        init_device_mesh("cpu", case.mesh_shape, mesh_dim_names=case.mesh_names)
        if case.mesh_names
        else None
    )
    return SHARDINGS[case.sharding](model, mesh)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that verl makes FSDP units of their own: decoder layers and vision blocks."""
    names = getattr(model, "_no_split_modules", None) or ["Linear"]
    return (module for module in model.modules() if type(module).__name__ in names)


def _fsdp1(model: nn.Module, mesh: DeviceMesh | None) -> dict[str, Any]:
    """FSDP1: DTensors where it is given a mesh, ShardedTensors where it is not."""
    hybrid = mesh is not None and mesh.ndim == 2
    wrapped = FullyShardedDataParallel(
        model,
        sharding_strategy=(
            ShardingStrategy.HYBRID_SHARD if hybrid else ShardingStrategy.FULL_SHARD
        ),
        auto_wrap_policy=ModuleWrapPolicy({type(layer) for layer in _layers(model)}),
        device_id=torch.device("cpu"),
        device_mesh=mesh,
        # Parameters that are not trained cannot share a flat one with those that are.
        use_orig_params=not all(parameter.requires_grad for parameter in model.parameters()),
    )
    config = ShardedStateDictConfig(offload_to_cpu=True)
    with FullyShardedDataParallel.state_dict_type(
        wrapped, StateDictType.SHARDED_STATE_DICT, config
    ):
        return wrapped.state_dict()


def _fsdp2(
    model: nn.Module,
    mesh: DeviceMesh,
    placement: Callable[[nn.Parameter], Shard | None] | None = None,
) -> dict[str, Any]:
    """FSDP2: layers and untied embeddings are units, then the root takes the rest, as in verl."""
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    units = list(_layers(model))
    units += [m for m in model.modules() if isinstance(m, nn.Embedding) and not tied]
    for module in [*units, model]:
        fully_shard(module, mesh=mesh, shard_placement_fn=placement)
    return model.state_dict()


def _columns_where_even(param: nn.Parameter) -> Shard | None:
    """Shard(1) where FSDP2 takes it (it demands an even split there), else its default."""
    ranks = torch.distributed.get_world_size()
    return Shard(1) if param.ndim == 2 and param.shape[1] % ranks == 0 else None


def _fsdp2_tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> dict[str, Any]:
    """FSDP2 over tensor parallel: FSDP cuts what TP left, so cuts of one dimension are strided.

    torch's own gathering of the result is compared with the original: the cases are to test our
    reading of these placements, so they must not rest on a sharding that torch itself gets wrong.
    """
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parallelize_module(model, mesh["tp"], _TENSOR_PARALLEL)
    state = _fsdp2(model, mesh["fsdp"])
    for name, tensor in state.items():
        assert isinstance(tensor, DTensor), name
        gathered: Tensor = tensor.full_tensor()
        assert torch.equal(gathered, original[name]), f"{name} changed by sharding"
    return state


SHARDINGS: dict[str, Callable[[nn.Module, Any], dict[str, Any]]] = {
    "fsdp1": _fsdp1,
    "fsdp1_nomesh": _fsdp1,
    "fsdp2": _fsdp2,
    "fsdp2_shard1": partial(_fsdp2, placement=_columns_where_even),
    "fsdp2_tp": _fsdp2_tensor_parallel,
}
