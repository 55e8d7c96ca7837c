"""A tensor with a number added to each of its elements: norms that count from one, and from zero.

The sum is made in float64, where it is exact for all that norms hold, and rounded as casts are. A
number from 0.5 on, less one, has no more bits than it had; a smaller one may lose some.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.dtypes import CASTABLE, FLOAT64, DType
from ckpt_tool.tensors.geometry import Box, Shape
from ckpt_tool.tensors.lazy import LazyTensor, hold


@dataclass(frozen=True, slots=True, eq=False)
class Offset:
    """``amount`` added to each element of ``tensor``, a vector."""

    tensor: LazyTensor
    amount: float

    @property
    def shape(self) -> Shape:
        """That of the tensor."""
        return self.tensor.shape

    @property
    def dtype(self) -> DType:
        """What sums are computed in."""
        return FLOAT64

    @property
    def origin(self) -> DType:
        """What they are rounded from: reports say by how much, and after what."""
        is_rounded = self.tensor.dtype != FLOAT64
        return replace(FLOAT64, offset=self.amount) if is_rounded else FLOAT64

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        """The tensor."""
        return (self.tensor,)

    @property
    def recipe(self) -> str:
        """What is added."""
        return f"{self.amount:+g}"

    def open(self, reader: Reader) -> Filler:
        """What adds; reads nothing yet."""
        return _OffsetFiller(self, reader)


class _OffsetFiller(Filler):
    """Reads elements in float64 and adds to them."""

    def __init__(self, offset: Offset, reader: Reader) -> None:
        self._offset, self._reader = offset, reader

    def fill(self, box: Box, out: memoryview) -> None:
        """Put the elements of ``box`` into ``out``."""
        import numpy as np

        from ckpt_tool.tensors.casts import Caster

        tensor = self._offset.tensor
        ((start,), (count,)) = box
        wide = np.frombuffer(out, FLOAT64.carrier)
        raw = np.empty(count, tensor.dtype.carrier) if tensor.dtype != FLOAT64 else wide
        self._reader.read(tensor, start, start + count, raw.data.cast("B"))
        if raw is not wide:
            self._reader.keep(Caster).cast(raw, tensor.dtype, wide, FLOAT64, 0.0)
        wide.view(FLOAT64.name)[...] += self._offset.amount


def add(tensor: LazyTensor, amount: float) -> LazyTensor:
    """``tensor`` [N] plus ``amount``, in the same dtype; reads nothing.

    ValueError where it is no vector, or of no dtype that is cast.
    """
    if len(tensor.shape) != 1 or tensor.dtype not in CASTABLE:
        raise ValueError(f"{list(tensor.shape)} of {tensor.dtype}, expected a vector of floats")
    if not tensor.numel:
        return tensor
    return hold(Offset(tensor, amount), tensor.dtype, tensor)
