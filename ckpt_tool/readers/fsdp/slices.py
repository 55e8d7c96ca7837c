"""Tensors that were cut before FSDP saw them: experts by expert parallelism, outside DTensors.

VeOmni's ``ParallelPlan`` gives each rank of the mesh dimension ``ep`` its own ``E / ep`` experts,
the first dimension of a stacked tensor, and FSDP2 shards what a rank has over the dimensions
``ep_fsdp`` (and ``ep_replicate``) alone. So a DTensor says ``[E / ep, ...]``, and which slice it is
only its mesh tells. Source: ``veomni/distributed/parallel_state.py`` and ``torch_parallelize.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.base import Mesh
from ckpt_tool.readers.fsdp.local import LocalTensor
from ckpt_tool.tensors.geometry import Box

_SUFFIX = "_fsdp"
#: The parallelism of which it is known along which dimension it cuts: the first.
_EXPERTS = "ep"


def name_parallelism(mesh: Mesh) -> str | None:
    """By what the tensors of a mesh were cut before, if by anything: ``ep`` of ``ep_fsdp``."""
    names = [name for name in mesh.dim_names or () if name.endswith(_SUFFIX)]
    return names[0].removesuffix(_SUFFIX) or None if len(names) == 1 else None


def join_slices(found: Sequence[tuple[int, LocalTensor]]) -> list[tuple[int, LocalTensor]]:
    """What each rank holds, placed in the whole tensor.

    FormatError where it cannot be told how the slices fit together.
    """
    slices = [local.slice for _, local in found]
    if not any(slices):
        return [*found]
    known = [each for each in slices if each is not None]
    keys = sorted({each.key for each in known})
    counts = {each.count for each in known}
    if len(known) == len(slices) and counts | {len(keys)} == {1}:
        return [*found]
    if len(known) < len(slices) or len(counts) > 1 or len({each.name for each in known}) > 1:
        raise FormatError("the meshes of its ranks do not agree on whether and how it was cut")
    return [(rank, _place(local, keys)) for rank, local in found]


def _place(local: LocalTensor, keys: Sequence[int]) -> LocalTensor:
    part = local.slice
    assert part is not None
    count = len(keys) if part.count is None else part.count
    if count == 1:
        return local
    if part.name != _EXPERTS or not local.shape:
        raise FormatError(
            f"cut into {count} by the mesh dimension {part.name!r} before FSDP sharded it, and"
            " nothing says along which of its own"
        )
    number = keys.index(part.key) if part.count is None else part.key
    rows = local.shape[0]
    holdings = tuple(replace(held, box=_move(held.box, number * rows)) for held in local.holdings)
    placements = f"{part.name} Shard(0), {local.placements}"
    shape = (rows * count, *local.shape[1:])
    return replace(local, shape=shape, holdings=holdings, placements=placements)


def _move(box: Box, rows: int) -> Box:
    return Box((box.offsets[0] + rows, *box.offsets[1:]), box.sizes)
