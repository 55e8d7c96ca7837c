"""What one rank holds of one tensor, whatever its file has in place of it."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tool.readers.base import Holding, Mesh
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Shape


@dataclass(frozen=True, slots=True)
class Slice:
    """Which part of a tensor the ranks of a mesh hold together.

    ``name``: the parallelism that cut it. ``key``: rises with the part's number. ``count``: how
    many there are, and ``key`` is the number then; None where the mesh does not say it.
    """

    name: str
    key: int
    count: int | None = None


@dataclass(frozen=True, slots=True)
class LocalTensor:
    """One rank's part of a tensor, or of a ``slice`` of one, which ``shape`` and boxes are of."""

    shape: Shape
    dtype: DType
    placements: str
    holdings: tuple[Holding, ...]
    mesh: Mesh | None
    slice: Slice | None = None
