"""The numbers of one block of a pair of tensors, in memory that serves the next block too.

Fresh memory for each step would cost more than all the arithmetic. A reduction is never given to
more than one thread of the BLAS, so numbers do not depend on how many cores there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ckpt_tool.compare.parts import Flags, any_part, multiply, note_first, peak, set_aside
from ckpt_tool.compare.quick import QuickRank
from ckpt_tool.compare.stats import Stats, Tolerance
from ckpt_tool.compare.values import (
    Values,
    count_values,
    decode_into,
    is_ordered,
    order_bits,
    view_bits,
)
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.equality import Pair
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.sweep import Sweep

_EXPONENT_BIAS = 1023
_EXPONENT_SHIFT = 52


class BlockMeasure:
    """Measures blocks of pairs, those of one range after the other; one instance per thread."""

    def __init__(self, files: FileTable) -> None:
        self._readers = (BlockReader(files), BlockReader(files))
        self._sweeps: list[Sweep] = []
        self._kept: dict[tuple[str, str], NDArray[Any]] = {}
        self._quick = QuickRank()

    def begin(self, pair: Pair[Any], span: tuple[int, int], step: int) -> None:
        """Told that elements ``span`` of ``pair`` are next, in blocks of ``step``."""
        tensors = (pair.left, pair.right)
        self._sweeps = [
            Sweep(reader, tensor, span, step)
            for reader, tensor in zip(self._readers, tensors, strict=True)
        ]

    def measure(self, pair: Pair[Any], span: tuple[int, int], tolerance: Tolerance) -> Stats:
        """All numbers of elements ``[start, stop)``, the row-major order's.

        OSError and FormatError where a file cannot be read.
        """
        raw = self._read(pair, span)
        a, b, different = self._compare(pair, raw)
        part = Stats(
            num_elements=span[1] - span[0],
            num_different=int(np.count_nonzero(different)),
            digests=_digest(raw),
        )
        if part.num_different:
            note_first(part, a, b, different, span[0])
        size = self._take("size", len(b))
        finite, part.peaks = None, (peak(a, size), peak(b, size))
        if not all(map(isfinite, part.peaks)):
            finite = set_aside(part, a, b, different)
            part.peaks = (peak(a, size), peak(b, size))
        if not part.num_different:
            square = multiply(a, a)
            part.squares, part.product = (square, square, 0.0), square
            return part
        distance = self._subtract(a, b)
        np.abs(distance, out=distance)
        part.squares = (multiply(a, a), multiply(b, b), multiply(distance, distance))
        part.product = multiply(a, b)
        outside = different
        if not tolerance.exact and _is_inexact(pair.left.dtype):
            far = distance > tolerance.atol + tolerance.rtol * size
            far = far if finite is None else far | ~finite
            outside = different & any_part(far, len(different))
        part.num_outside = int(np.count_nonzero(outside))
        self._add_distances(part, distance, size)
        if pair.left.dtype == pair.right.dtype and is_ordered(pair.left.dtype):
            part.max_ulp = self._find_largest_ulp(raw, pair.left.dtype, finite)
        return part

    def rank(self, pair: Pair[Any], span: tuple[int, int], step: int) -> Stats:
        """Only what :attr:`~.Stats.distance` rests on, how many differ, and the digests.

        Sums are right to six digits; digests are those that :meth:`measure` has of ``step``
        elements at a time, one behind the other. Raises what that does.
        """
        raw = self._read(pair, span)
        sizes = [step * tensor.dtype.itemsize for tensor in (pair.left, pair.right)]
        sides = [
            [side[at : at + size] for at in range(0, len(side), size)]
            for side, size in zip(raw, sizes, strict=True)
        ]
        same = pair.left.dtype == pair.right.dtype
        found = self._quick.rank(*raw, pair.left.dtype) if same else None
        if found is None:
            found = Stats()
            for both in zip(*sides, strict=True):
                found.add(self._rank_exactly(pair, both))
        left, right = ("".join(map(xxhash.xxh3_128_hexdigest, side)) for side in sides)
        found.digests = left, right
        return found

    def _rank_exactly(self, pair: Pair[Any], raw: tuple[memoryview, memoryview]) -> Stats:
        """The same with sums in float64, and without digests."""
        a, b, different = self._compare(pair, raw)
        part = Stats(num_elements=len(different), num_different=int(np.count_nonzero(different)))
        squares = multiply(b, b), self._square_distance(a, b)
        if not all(map(isfinite, squares)):
            set_aside(part, a, b, different)
            squares = multiply(b, b), self._square_distance(a, b)
        part.squares = (0.0, *squares)
        return part

    def _read(self, pair: Pair[Any], span: tuple[int, int]) -> tuple[memoryview, memoryview]:
        left = self._read_side(0, pair.left, span)
        return left, self._read_side(1, pair.right, span)

    def _read_side(self, side: int, tensor: LazyTensor, span: tuple[int, int]) -> memoryview:
        size = (span[1] - span[0]) * tensor.dtype.itemsize
        raw = self._take(f"raw {side}", size, "u1").data
        self._sweeps[side].read(*span, raw)
        return raw

    def _compare(
        self, pair: Pair[Any], raw: tuple[memoryview, memoryview]
    ) -> tuple[Values, Values, Flags]:
        """Both sides' values, and which elements differ; where no bit does, one array is both."""
        if pair.left.dtype != pair.right.dtype:
            a, b = self._decode(pair, raw)
            unequal = (a != b) & ~(np.isnan(a) & np.isnan(b))
            return a, b, any_part(unequal, len(raw[0]) // pair.left.dtype.itemsize)
        left, right = (view_bits(side, pair.left.dtype) for side in raw)
        different = np.not_equal(left, right, out=self._take("different", len(left), "?"))
        if not different.any():
            a = self._decode_side(0, raw[0], pair.left.dtype)
            return a, a, different
        a, b = self._decode(pair, raw)
        if _is_cast(pair.left) or _is_cast(pair.right):  # casts are of real numbers
            different &= ~(np.isnan(a) & np.isnan(b))
        return a, b, different

    def _decode(self, pair: Pair[Any], raw: tuple[memoryview, memoryview]) -> tuple[Values, Values]:
        """The elements of both sides; a real side beside a complex one as complex."""
        a = self._decode_side(0, raw[0], pair.left.dtype)
        b = self._decode_side(1, raw[1], pair.right.dtype)
        if len(a) < len(b):
            return np.column_stack((a, np.zeros_like(a))).ravel(), b
        if len(b) < len(a):
            return a, np.column_stack((b, np.zeros_like(b))).ravel()
        return a, b

    def _decode_side(self, side: int, raw: memoryview, dtype: DType) -> Values:
        count = count_values(len(raw), dtype)
        words = self._take("words", count, "u4")
        return decode_into(raw, dtype, self._take(f"values {side}", count), words)

    def _subtract(self, a: Values, b: Values) -> Values:
        difference: Values = np.subtract(a, b, out=self._take("difference", len(a)))
        return difference

    def _square_distance(self, a: Values, b: Values) -> float:
        if a is b:
            return 0.0
        difference = self._subtract(a, b)
        return multiply(difference, difference)

    def _add_distances(self, part: Stats, distance: Values, size: Values) -> None:
        """What follows from ``|a - b|`` and ``|b|`` alone, in the memory of ``a`` and ``b``."""
        part.max_abs, part.sum_abs = float(distance.max()), float(distance.sum())
        ratio = np.divide(distance, size, out=self._take("values 0", len(size)))
        if not size.all():
            ratio[size == 0] = 0.0
        part.max_rel = float(ratio.max())
        codes = self._take("values 1", len(distance)).view(np.int64)
        np.right_shift(distance.view(np.int64), _EXPONENT_SHIFT, out=codes)
        exponents = np.bincount(codes)
        part.exponents = {
            int(at) - _EXPONENT_BIAS: int(exponents[at]) for at in np.flatnonzero(exponents) if at
        }

    def _find_largest_ulp(
        self, raw: tuple[memoryview, memoryview], dtype: DType, finite: Flags | None
    ) -> int:
        """In the memory of what is measured last."""
        left, right = (view_bits(side, dtype) for side in raw)
        names, count = ("values 0", "values 1", "difference"), len(left)
        first, second, spare = (self._take(name, count).view(left.dtype)[:count] for name in names)
        a, b = order_bits(left, first, spare), order_bits(right, second, spare)
        if finite is not None:
            a[~finite] = b[~finite] = 0
        # Their distance may not fit a signed integer; unsigned, it is right modulo its range.
        above = np.maximum(a, b, out=spare.view(a.dtype)).view(left.dtype)
        below = np.minimum(a, b, out=a).view(left.dtype)
        return int(np.subtract(above, below, out=second).max())

    def _take(self, name: str, count: int, kind: str = "f8") -> NDArray[Any]:
        """Memory for ``count`` elements: what the last block had."""
        found = self._kept.get((name, kind))
        if found is None or len(found) < count:
            found = self._kept[name, kind] = np.empty(count, kind)
        return found[:count]


def _digest(raw: Sequence[memoryview]) -> tuple[str, str]:
    left, right = raw
    return xxhash.xxh3_128_hexdigest(left), xxhash.xxh3_128_hexdigest(right)


def _is_inexact(dtype: DType) -> bool:
    """Whether closeness means anything: integers are equal or not."""
    return dtype.is_float or dtype.name == "complex64"


def _is_cast(tensor: LazyTensor) -> bool:
    return tensor.dtype != tensor.origin
