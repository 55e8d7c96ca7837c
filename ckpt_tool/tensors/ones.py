"""A tensor of ones, for what a trainer has and no file does."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Box, Shape
from ckpt_tool.tensors.lazy import LazyTensor, hold, make_zeros

#: An element of each dtype that norms have, as it lies in a file.
_BITS = {
    "float64": b"\0\0\0\0\0\0\xf0\x3f",
    "float32": b"\0\0\x80\x3f",
    "bfloat16": b"\x80\x3f",
    "float16": b"\0\x3c",
}


def make_ones(shape: Shape, dtype: DType) -> LazyTensor:
    """A tensor of ones; reads nothing. ValueError where no norm is of this dtype."""
    if dtype.name not in _BITS:
        raise ValueError(f"ones of {dtype.name}, expected {', '.join(_BITS)}")
    zeros = make_zeros(shape, dtype)
    return hold(Ones(shape, dtype), dtype, zeros) if zeros.numel else zeros


@dataclass(frozen=True, slots=True, eq=False)
class Ones:
    """Elements that are all one."""

    shape: Shape
    dtype: DType

    @property
    def origin(self) -> DType:
        """That of the elements: nothing is cast."""
        return self.dtype

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        """None."""
        return ()

    @property
    def recipe(self) -> str:
        """What they are."""
        return "ones"

    def open(self, reader: Reader) -> Filler:
        """What writes them."""
        return _OnesFiller(_BITS[self.dtype.name])


class _OnesFiller(Filler):
    """Reads nothing."""

    def __init__(self, one: bytes) -> None:
        self._one = one

    def fill(self, box: Box, out: memoryview) -> None:
        """Put the elements of ``box`` into ``out``."""
        out[:] = self._one * (len(out) // len(self._one))
