"""Relations that hold for every pair of elements of two tensors, or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from ckpt_tool.compare.values import decode_values, view_bits
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.casts import Caster
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, DType
from ckpt_tool.tensors.lazy import LazyTensor

_ELEMENTS = 1 << 17

#: Largest relative rounding error: a factor nearer to 1 than this is no scaling.
_ROUNDOFF = {BFLOAT16: 2.0**-8, FLOAT16: 2.0**-11, FLOAT32: 2.0**-24}


def rounds_to(source: LazyTensor, rounded: LazyTensor, via: DType) -> bool:
    """Whether ``rounded`` is ``source`` after a cast to ``via`` and back, bit for bit.

    Both have one shape and floating-point dtype. OSError where a file cannot be read.
    """
    caster, dtype = Caster(), source.dtype
    narrow = memoryview(bytearray(_ELEMENTS * via.itemsize))
    again = memoryview(bytearray(_ELEMENTS * dtype.itemsize))

    def holds(one: memoryview, other: memoryview) -> bool:
        count = len(one) // dtype.itemsize
        small, wide = narrow[: count * via.itemsize], again[: len(one)]
        caster.cast_bytes(one, dtype, small, via, float("inf"))
        caster.cast_bytes(small, via, wide, dtype, float("inf"))
        return np.array_equal(view_bits(wide, dtype), view_bits(other, dtype))

    return _holds_everywhere(source, rounded, holds)


def find_scale(left: LazyTensor, right: LazyTensor) -> float | None:
    """The factor that, after rounding, takes ``right`` to ``left``; None if there is none.

    Each element allows the factors that take ``b`` to within half a step of ``a``: what all of
    them allow is the answer, to as few digits as that takes. Both have one dtype, of at most 32
    bits. OSError where a file cannot be read.
    """
    if left.dtype not in _ROUNDOFF:
        return None
    low, high = -math.inf, math.inf
    with FileTable() as files:
        for one, other in _blocks(files, left, right):
            found = _factors(one, other, left.dtype)
            if found is None:
                return None
            low, high = max(low, found[0]), min(high, found[1])
            if low > high:
                return None
    if not math.isfinite(low) or not math.isfinite(high):
        return None
    factor = _shortest(low, high)
    if low == high and not _rounds_so(left, right, factor):
        return None
    return None if abs(factor - 1) <= _ROUNDOFF[left.dtype] else factor


def _rounds_so(left: LazyTensor, right: LazyTensor, factor: float) -> bool:
    """Whether every product rounds to ``left``: where one factor is left, it may end in ties."""
    caster, dtype = Caster(), left.dtype

    def holds(one: memoryview, other: memoryview) -> bool:
        product = (decode_values(other, dtype) * factor).data.cast("B")
        rounded = memoryview(bytearray(len(one)))
        caster.cast_bytes(product, FLOAT64, rounded, dtype, math.inf)
        return np.array_equal(view_bits(rounded, dtype), view_bits(one, dtype))

    return _holds_everywhere(left, right, holds)


def _factors(one: memoryview, other: memoryview, dtype: DType) -> tuple[float, float] | None:
    """The least and the largest factor that a block allows; None where zeros contradict any."""
    a, b = decode_values(one, dtype), decode_values(other, dtype)
    bits = view_bits(one, dtype)
    sign = np.signbit(a)
    magnitude = bits & bits.dtype.type((1 << (8 * dtype.itemsize - 1)) - 1)
    zero = b == 0
    if not np.isfinite(a).all() or not np.isfinite(b).all() or (a[zero] != 0).any():
        return None
    flipped = sign != np.signbit(b)
    if flipped.any() and not flipped.all():  # zeros have signs too
        return None
    size = np.abs(a)
    above = decode_values(memoryview(magnitude + bits.dtype.type(1)).cast("B"), dtype)
    below = np.where(
        magnitude > 0,
        decode_values(memoryview(np.maximum(magnitude, 1) - bits.dtype.type(1)).cast("B"), dtype),
        -size,
    )
    base = np.abs(b[~zero])
    if not len(base):
        return -math.inf, math.inf
    low = float((((size + below) / 2)[~zero] / base).max())
    high = float((((size + above) / 2)[~zero] / base).min())
    return (-high, -low) if flipped.all() else (low, high)


def _shortest(low: float, high: float) -> float:
    """The number with the fewest digits from ``low`` to ``high``."""
    middle = (low + high) / 2
    for digits in range(1, 17):
        short = float(f"{middle:.{digits}g}")
        if low <= short <= high:
            return short
    return middle


def _holds_everywhere(
    left: LazyTensor, right: LazyTensor, holds: Callable[[memoryview, memoryview], bool]
) -> bool:
    with FileTable() as files:
        return all(holds(one, other) for one, other in _blocks(files, left, right))


def _blocks(
    files: FileTable, left: LazyTensor, right: LazyTensor
) -> Iterator[tuple[memoryview, memoryview]]:
    reader = BlockReader(files)
    sides = (left, right)
    buffers = [memoryview(bytearray(_ELEMENTS * side.dtype.itemsize)) for side in sides]
    for start in range(0, left.numel, _ELEMENTS):
        stop = min(start + _ELEMENTS, left.numel)
        parts = []
        for side, buffer in zip(sides, buffers, strict=True):
            parts.append(buffer[: (stop - start) * side.dtype.itemsize])
            reader.read(side, start, stop, parts[-1])
        yield parts[0], parts[1]
