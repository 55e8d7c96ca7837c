"""Where a rank's local tensor lies in the global one: the cutting rule of DTensor (pure).

Each mesh dimension with ``Shard(d)`` cuts tensor dimension ``d`` as ``torch.chunk`` does: blocks
of ceil(n / parts), the last one shorter, then empty ones. Cuts happen in mesh order, except that
a ``_StridedShard`` cuts later: FSDP is the outer mesh dimension but shards what tensor parallelism
left. Its ``split_factor`` is the number of blocks that there are already when it cuts. From torch
2.13 a spec may instead carry ``shard_order``, the mesh dimensions in the order in which they cut
each tensor dimension.
Source: ``torch/distributed/tensor/placement_types.py`` and ``_dtensor_spec.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckpt_tool.common.wording import count_noun
from ckpt_tool.tensors.geometry import Box, Shape


@dataclass(frozen=True, slots=True)
class Placement:
    """A placement by the name of its class; ``dim`` is None for those that do not shard.

    ``split_factor`` belongs to ``_StridedShard``; None where the file does not say it.
    """

    kind: str
    dim: int | None = None
    split_factor: int | None = None

    @property
    def shards(self) -> bool:
        """Whether it cuts a tensor dimension."""
        return self.kind in ("Shard", "_StridedShard")

    @property
    def known(self) -> bool:
        """Whether it is a cut or a copy; the others (Partial) leave no tensor to read."""
        return self.shards or self.kind == "Replicate"

    def __str__(self) -> str:
        return self.kind if self.dim is None else f"{self.kind}({self.dim})"


ShardOrder = Mapping[int, Sequence[int]]


def cut(length: int, parts: int, index: int) -> tuple[int, int]:
    """Start and size of block ``index`` when ``length`` elements are cut into ``parts``."""
    step = -(-length // parts)
    start = min(index * step, length)
    return start, min(step, length - start)


def find_cutting_order(
    mesh_shape: Shape, placements: Sequence[Placement], shard_order: ShardOrder | None = None
) -> list[int]:
    """Mesh dimensions in the order in which they cut; ValueError where no order fits.

    A plain shard cuts before all later mesh dimensions. A strided one cuts where the blocks of
    the same tensor dimension are as many as its split factor.
    """
    order: list[int] = []
    for mesh_dim in reversed(range(len(placements))):
        placement = placements[mesh_dim]
        if placement.kind == "Shard":
            order.insert(0, mesh_dim)
        elif placement.shards:
            order.insert(_position(order, mesh_shape, placements, placement), mesh_dim)
    strided = any(placement.kind == "_StridedShard" for placement in placements)
    if shard_order and not strided:
        return [
            mesh_dim for tensor_dim in sorted(shard_order) for mesh_dim in shard_order[tensor_dim]
        ]
    return order


def _position(
    order: Sequence[int], mesh_shape: Shape, placements: Sequence[Placement], strided: Placement
) -> int:
    """Where in ``order``, the cuts of later mesh dimensions, a strided shard has its turn."""
    blocks = 1
    for position, mesh_dim in enumerate(order):
        if blocks == strided.split_factor:
            return position
        if placements[mesh_dim].dim == strided.dim:
            blocks *= mesh_shape[mesh_dim]
    if strided.split_factor in (None, blocks):
        return len(order)
    raise ValueError(
        f"{strided} with split factor {strided.split_factor} fits no order of cuts on a mesh of"
        f" {list(mesh_shape)}"
    )


def find_local_box(
    shape: Shape,
    mesh_shape: Shape,
    coordinate: Sequence[int],
    placements: Sequence[Placement],
    shard_order: ShardOrder | None = None,
) -> Box:
    """The block of a tensor of global ``shape`` at ``coordinate`` of the mesh.

    ``placements`` has one entry per mesh dimension. Raises ValueError where a placement names a
    dimension that the tensor does not have, or where no order of cuts fits.
    """
    offsets, sizes = [0] * len(shape), list(shape)
    for mesh_dim in find_cutting_order(mesh_shape, placements, shard_order):
        dim = placements[mesh_dim].dim
        if dim is None or not -len(shape) <= dim < len(shape):
            raise ValueError(
                f"{placements[mesh_dim]} of a tensor with {count_noun(len(shape), 'dimension')}"
            )
        start, sizes[dim] = cut(sizes[dim], mesh_shape[mesh_dim], coordinate[mesh_dim])
        offsets[dim] += start
    return Box(tuple(offsets), tuple(sizes))
