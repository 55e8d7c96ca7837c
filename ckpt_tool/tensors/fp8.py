"""Scaled fp8: a matrix of one-byte weights times a small matrix of factors, as one tensor.

The weight ``[r, c]`` is ``float32(fp8[r, c]) * scales[r // rows, c // columns]`` in float32,
rounded once to the dtype asked for. A factor is that of a block, of a row or of the whole matrix.
Here is only where everything lies, which takes no numpy; :mod:`ckpt_tool.tensors.products`
computes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.dtypes import BFLOAT16, BY_NAME, CASTABLE, FLOAT16, FLOAT32, UINT8, DType
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor, hold, stack

#: What scales turn into weights: one byte, sign and 4 bits of exponent and 3 of mantissa.
FLOAT8 = BY_NAME["float8_e4m3fn"]
#: Scales that are powers of two: a byte of exponent (ue8m0), also stored as an integer.
EXPONENT = BY_NAME["float8_e8m0fnu"]
#: Experts in one tensor, each of which takes some memory by itself: no model has as many.
_MOST_MATRICES = 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """The operands: ``weight`` [R, C] of fp8, ``scales`` by blocks of (rows, columns) in order."""

    weight: LazyTensor
    scales: LazyTensor
    block: tuple[int, int]

    @property
    def shape(self) -> Shape:
        """That of the weight: [R, C]."""
        return self.weight.shape

    @property
    def dtype(self) -> DType:
        """What products are computed in."""
        return FLOAT32

    @property
    def origin(self) -> DType:
        """What the weight has on disk."""
        return self.weight.dtype

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        """Weight and scales."""
        return self.weight, self.scales

    @property
    def recipe(self) -> str:
        """What shares a factor."""
        return f"weight * scales of blocks {self.block}"

    def open(self, reader: Reader) -> Filler:
        """What multiplies; reads nothing yet."""
        from ckpt_tool.tensors.products import ProductFiller

        return ProductFiller(self.weight, self.scales, self.block, reader)


def scale_weight(
    weight: LazyTensor, scales: LazyTensor, block: tuple[int, int], dtype: DType
) -> LazyTensor:
    """``weight``, float8_e4m3fn ``[R, C]``, times its ``scales``, as a tensor of ``dtype``.

    ``scales`` are floats of 32 or 16 bits, or exponents of two in a byte (float8_e8m0fnu, uint8):
    ``[ceil(R / rows), ceil(C / columns)]`` with ``block`` = ``(rows, columns)``, ``[R, 1]`` of
    rows, ``[]`` or ``[1]`` of all. ``[E, R, C]`` are as many weights, with one more dimension of
    scales, of which ``[E, 1, 1]`` are one for each. ValueError where a shape or a dtype is another
    one; reads nothing.
    """
    _check_dtypes(weight, scales, dtype)
    if len(weight.shape) == 3 and weight.shape[0]:
        factors = _list_each(scales, weight.shape)
        each = [weight.select(0, one) for one in range(weight.shape[0])]
        return stack([scale_weight(*two, block, dtype) for two in zip(each, factors, strict=True)])
    block = _find_block(weight.shape, scales.shape, block)
    if not weight.numel:
        return LazyTensor(weight.shape, dtype, FLOAT32, ())
    return hold(Scaled(weight, scales, block), dtype, weight)


def _check_dtypes(weight: LazyTensor, scales: LazyTensor, dtype: DType) -> None:
    if (weight.dtype, weight.source_dtype) != (FLOAT8, FLOAT8):
        raise ValueError(f"a weight of {weight.dtype}, expected {FLOAT8} without scales")
    known = (FLOAT32, BFLOAT16, FLOAT16, EXPONENT, UINT8)
    if scales.dtype not in known or scales.dtype != scales.source_dtype:
        listed = ", ".join(map(str, known))
        raise ValueError(f"scales of {scales.dtype}, expected one of {listed} on disk")
    if dtype not in CASTABLE:
        raise ValueError(f"no cast from {FLOAT8} with scales to {dtype}")


def _list_each(scales: LazyTensor, weight: Shape) -> list[LazyTensor]:
    """Those of each of the matrices of a weight, which may all have one."""
    if weight[0] > _MOST_MATRICES:
        raise ValueError(
            f"a weight of shape {list(weight)}, expected {_MOST_MATRICES:,} matrices at most"
        )
    shape = scales.shape
    if len(shape) <= 1:
        return [scales] * weight[0]
    if len(shape) != len(weight) or shape[0] != weight[0]:
        raise ValueError(
            f"scales of shape {list(shape)} for weights of shape {list(weight)}, expected as many"
        )
    if shape[1:] == (1, 1):
        scales = scales.select(2, 0)
    return [scales.select(0, one) for one in range(weight[0])]


def _find_block(weight: Shape, scales: Shape, block: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns that share a factor: by ``block``, or what the shape of scales says."""
    if len(weight) != 2:
        raise ValueError(f"a weight of shape {list(weight)}, expected a matrix, or several")
    if min(block) < 1:
        raise ValueError(f"blocks of {list(block)}, expected rows and columns")
    expected = tuple(-(-size // step) for size, step in zip(weight, block, strict=True))
    if scales == expected:
        return block
    if scales in ((), (1,)):
        return weight[0], weight[1]
    if scales == (weight[0], 1):
        return 1, weight[1]
    raise ValueError(
        f"scales of shape {list(scales)} for a weight of shape {list(weight)} in blocks of"
        f" {list(block)}, expected {list(expected)}"
    )
