"""A matrix with a low-rank update, as one tensor: LoRA and DoRA, fused.

``base + scale * (left @ right)``, where ``left`` [R, r] and ``right`` [r, C]; with ``magnitude``
[R], each row of that is scaled to this length (DoRA, https://arxiv.org/abs/2402.09353). Here is
only where everything lies; :mod:`ckpt_tool.tensors.fusing` computes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tool.tensors.dtypes import CASTABLE, FLOAT32, FLOAT64, DType
from ckpt_tool.tensors.geometry import Box, contiguous_strides
from ckpt_tool.tensors.lazy import Chunk, LazyTensor, Region


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The operands; all are read in :attr:`dtype`, in which the result is row-major too."""

    base: LazyTensor
    left: LazyTensor
    right: LazyTensor
    scale: float
    magnitude: LazyTensor | None

    @property
    def dtype(self) -> DType:
        """What is computed in: float32, or float64 where the base has that."""
        return FLOAT64 if self.base.dtype == FLOAT64 else FLOAT32

    @property
    def columns(self) -> int:
        """Elements per row."""
        return self.base.shape[1]


def updated(
    base: LazyTensor,
    left: LazyTensor,
    right: LazyTensor,
    scale: float,
    magnitude: LazyTensor | None = None,
) -> LazyTensor:
    """``base`` [R, C] plus ``scale`` times ``left`` [R, r] @ ``right`` [r, C], as ``base.dtype``.

    With ``magnitude`` [R], each row is then scaled to this length. Computed in float32 (float64
    where ``base`` has that) and rounded once, to whatever dtype the result is cast to. ValueError
    where a shape or a dtype is another one; reads nothing.
    """
    _check(base, left, right, magnitude)
    if not base.numel:
        return base
    computed = LowRank(base, left, right, scale, magnitude)
    path = base.chunks[0].region.path
    region = Region(path, 0, contiguous_strides(base.shape), computed=computed)
    chunk = Chunk(Box((0, 0), base.shape), region)
    return LazyTensor(base.shape, base.dtype, computed.dtype, (chunk,))


def _check(
    base: LazyTensor, left: LazyTensor, right: LazyTensor, magnitude: LazyTensor | None
) -> None:
    if len(base.shape) != 2:
        raise ValueError(f"a base of shape {list(base.shape)}, expected a matrix")
    fits = len(left.shape) == len(right.shape) == 2 and left.shape[1] == right.shape[0]
    if not fits or (left.shape[0], right.shape[1]) != base.shape:
        raise ValueError(
            f"factors of shapes {list(left.shape)} and {list(right.shape)} for a base of shape"
            f" {list(base.shape)}"
        )
    if magnitude is not None and magnitude.shape != base.shape[:1]:
        raise ValueError(
            f"magnitudes of shape {list(magnitude.shape)}, expected {list(base.shape[:1])}"
        )
    for tensor in (base, left, right, *([magnitude] if magnitude is not None else [])):
        if tensor.dtype not in CASTABLE:
            raise ValueError(f"{tensor.dtype}, expected a floating-point type of 16 bits or more")
