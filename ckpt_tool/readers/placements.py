"""Where a rank's local tensor lies in the global one: the cutting rule of DTensor (pure).

Each mesh dimension with ``Shard(d)`` cuts tensor dimension ``d`` as ``torch.chunk`` does: blocks
of ceil(n / parts), the last one shorter, then empty ones. Cuts happen in mesh order, except that
a ``_StridedShard`` cuts after the dimensions that follow it: FSDP is the outer mesh dimension but
shards what tensor parallelism left. From torch 2.13 a spec may instead carry ``shard_order``, the
mesh dimensions in the order in which they cut each tensor dimension.
Source: ``torch/distributed/tensor/placement_types.py`` and ``_dtensor_spec.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckpt_tool.geometry import Box, Shape


@dataclass(frozen=True, slots=True)
class Placement:
    """A placement by the name of its class; ``dim`` is None for those that do not shard."""

    kind: str
    dim: int | None = None

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


def cutting_order(
    placements: Sequence[Placement], shard_order: ShardOrder | None = None
) -> list[int]:
    """Mesh dimensions in the order in which they cut."""
    dims = [i for i, placement in enumerate(placements) if placement.shards]
    strided = [i for i in dims if placements[i].kind == "_StridedShard"]
    if shard_order and not strided:
        return [i for tensor_dim in sorted(shard_order) for i in shard_order[tensor_dim]]
    return [i for i in dims if i not in strided] + strided[::-1]


def local_box(
    shape: Shape,
    mesh_shape: Shape,
    coordinate: Sequence[int],
    placements: Sequence[Placement],
    shard_order: ShardOrder | None = None,
) -> Box:
    """The block of a tensor of global ``shape`` at ``coordinate`` of the mesh.

    ``placements`` has one entry per mesh dimension. Raises ValueError where a placement names a
    dimension that the tensor does not have.
    """
    offsets, sizes = [0] * len(shape), list(shape)
    for mesh_dim in cutting_order(placements, shard_order):
        dim = placements[mesh_dim].dim
        if dim is None or not -len(shape) <= dim < len(shape):
            raise ValueError(f"{placements[mesh_dim]} of a tensor with {len(shape)} dimensions")
        start, sizes[dim] = cut(sizes[dim], mesh_shape[mesh_dim], coordinate[mesh_dim])
        offsets[dim] += start
    return Box(tuple(offsets), tuple(sizes))
