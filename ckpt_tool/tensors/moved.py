"""Arrays of the elements of one tensor, in other places or several times: nothing is computed.

The tensor is not rounded before its elements are moved: whoever asks for them may want another
dtype than it was to have. What is computed can be made in that dtype, which takes half the time of
moving elements twice as wide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.dtypes import BFLOAT16, DType
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.rounding import CastErrors


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """What such arrays have alike; each has a shape and a recipe, and says how it is read."""

    tensor: LazyTensor

    @property
    def dtype(self) -> DType:
        """That of the tensor."""
        return self.tensor.dtype

    @property
    def origin(self) -> DType:
        """What the tensor has on disk."""
        return self.tensor.origin

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        """The tensor."""
        return (self.tensor,)


class MovingFiller(Filler):
    """Moves elements of ``moved``; what it shares with other threads is shared by ``origin``."""

    def __init__(self, moved: Moved, reader: Reader, origin: Moved | None = None) -> None:
        self.moved, self.reader, self.origin = moved, reader, origin or moved
        self._rounded: MovingFiller | None = None

    def fill_rounded(self, box: Box, out: memoryview, dtype: DType, errors: CastErrors) -> bool:
        """Put the elements of ``box`` of what is computed into ``out``, rounded before they moved.

        To bfloat16 alone, in which there is room for all numbers: elements that are not asked for
        are rounded too, and an infinity among them would be said of the wrong tensor.
        """
        if dtype != BFLOAT16 or not self.moved.tensor.is_computed:
            return False
        if self._rounded is None:
            rounded = replace(self.moved, tensor=self.moved.tensor.to(dtype))
            self._rounded = type(self)(rounded, self.reader, self.origin)
        before, self.reader.errors = self.reader.errors, errors
        try:
            self._rounded.fill(box, out)
        finally:
            self.reader.errors = before
        return True
