"""fp8 weights times their scales, computed: exact products in float32, each rounded once.

A block has one factor and an fp8 element only 256 values, so the 256 results of each block are
computed once and the elements looked up: for blocks of 128 x 128, 64 times fewer roundings.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.tensors.casts import Caster
from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.code_tables import POWERS
from ckpt_tool.tensors.dtypes import FLOAT32, DType
from ckpt_tool.tensors.geometry import Box, Shape
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.product_tables import CODES, Band, Step, Table, make_table
from ckpt_tool.tensors.rounding import CastErrors

#: Elements per step: their 8-byte indices stay in the second-level cache.
STEP = 1 << 17

#: Blocks side by side in a table: 32768 columns of the usual blocks, and at most 512 KiB.
_BLOCKS = 256


class _Scratch:
    """Memory that is the same for all matrices: to allocate it anew for each would take long."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)
        self._index = np.zeros(STEP, np.intp)
        self._pattern = (0, 0, 0)  # phase, columns and block width that the index is filled for
        self._filled = 0  # rows

    def bytes_of(self, sizes: Shape) -> NDArray[np.uint8]:
        """Memory for bytes of a box."""
        if len(self._bytes) < prod(sizes):
            self._bytes = np.empty(prod(sizes), np.uint8)
        return self._bytes[: prod(sizes)].reshape(sizes)

    def index(self, raw: NDArray[np.uint8], phase: int, width: int) -> NDArray[np.intp]:
        """Where in a table the result of each byte is.

        The first byte is ``phase`` columns from the beginning of the table, with blocks of
        ``width`` columns. The number of its block, times 256, is there from the last step, or
        filled in; the byte itself is stored as the lowest one of the index, which spares a sum.
        """
        rows, columns = raw.shape
        begin, length, block = self._pattern
        fits = block == width and begin <= phase and phase + columns <= begin + length
        if not fits or rows > (self._filled if columns == length else 1):
            numbers = np.arange(phase, phase + columns) // width * CODES
            self._index[: rows * columns].reshape(rows, columns)[...] = numbers
            self._pattern, self._filled = (phase, columns, width), rows
            begin = phase
        skip = phase - begin  # a part of a row needs part of the same
        index = self._index[skip : skip + rows * columns].reshape(rows, columns)
        index.view(np.uint8).reshape(rows, columns, -1)[:, :, 0] = raw
        return index


class ProductFiller(Filler):
    """Multiplies ``weight`` [R, C] with ``scales`` by blocks of (rows, columns).

    Keeps the last table of results.
    """

    def __init__(
        self, weight: LazyTensor, scales: LazyTensor, block: tuple[int, int], reader: Reader
    ) -> None:
        self._is_power = scales.dtype.itemsize == 1
        self._scales = scales if self._is_power else scales.to(FLOAT32)
        self._weight, self._block, self._reader = weight, block, reader
        self._across = -(-weight.shape[1] // block[1])
        self._caster, self._scratch = reader.keep(Caster), reader.keep(_Scratch)
        self._table: Table | None = None

    def fill(self, box: Box, out: memoryview) -> None:
        """Put the products of ``box``, row-major, into ``out``."""
        self.fill_rounded(box, out, FLOAT32, CastErrors())

    def fill_rounded(self, box: Box, out: memoryview, dtype: DType, errors: CastErrors) -> bool:
        """Put the products of ``box``, rounded to ``dtype``, into ``out``.

        ``errors`` learns the largest error of rounding one of these that is finite.
        """
        names = self._weight.dtype.name, dtype.name
        errors.learn(*names, 0.0)
        raw, box = self._load(box), self._flatten(box)
        found = np.frombuffer(out, dtype.carrier).reshape(box.sizes)
        for step in self._steps(box, raw.reshape(box.sizes), found, dtype):
            table, known = step.table, errors.largest(*names)
            # Of the modes "wrap" is the fastest: no place is out of the table.
            np.take(table.bits, step.places, out=step.out, mode="wrap")
            if table.worst > known:
                errors.learn(*names, table.largest_error(step, known, self._caster))
            over = table.overflown
            if over is not None and np.take(over, step.places, mode="wrap").any():
                self._reader.spoil()
        return True

    def _flatten(self, box: Box) -> Box:
        """Whole rows that have a factor each, one behind the other; what is none, as it is."""
        (row, _), (rows, columns) = box
        if self._block == (1, columns) and columns == self._weight.shape[1]:
            return Box((0, row * columns), (1, rows * columns))
        return box

    def _load(self, box: Box) -> NDArray[np.uint8]:
        (row, column), (rows, columns) = box
        part, start = self._weight, row * self._weight.shape[1] + column
        if rows > 1 and columns < part.shape[1]:
            part, start = part.narrow(0, row, rows).narrow(1, column, columns), 0
        raw = self._scratch.bytes_of(box.sizes)
        self._reader.read(part, start, start + box.volume, raw.data.cast("B"))
        return raw

    def _steps(
        self, box: Box, raw: NDArray[np.uint8], out: NDArray[Any], dtype: DType
    ) -> Iterator[Step]:
        """Look-ups of ``raw``, a box of the weight, for ``out``; each is to be made at once."""
        (row, column), (rows, columns) = box
        height, width = self._block
        for top, bottom in _cuts(row, row + rows, height, 1):
            band = Band(top // height, dtype)
            for left, right in _cuts(column, column + columns, width, _BLOCKS):
                table = self._table_for(band, left // width, -(-right // width))
                phase = left - table.first * width
                step = STEP // (right - left)
                for at in range(top, bottom, step):
                    part = np.s_[
                        at - row : min(at + step, bottom) - row, left - column : right - column
                    ]
                    index = self._scratch.index(raw[part], phase, width)
                    yield Step(table, raw[part], index, out[part])

    def _table_for(self, band: Band, first: int, last: int) -> Table:
        """A table with blocks ``[first, last)`` of a band.

        The last one may have them and more: ranges of elements begin and end within rows.
        """
        if self._table is None or not self._table.covers(band, first, last):
            factors = self._read_factors(band.number * self._across + first, last - first)
            self._table = make_table(band, first, factors, self._caster)
        return self._table

    def _read_factors(self, begin: int, count: int) -> NDArray[np.float32]:
        """``count`` factors from ``begin`` on; a byte is the exponent of a power of two."""
        raw: NDArray[Any] = np.empty(count, np.uint8 if self._is_power else np.float32)
        self._reader.read(self._scales, begin, begin + count, raw.data.cast("B"))
        return POWERS[raw] if self._is_power else raw


def _cuts(start: int, stop: int, block: int, most: int) -> Iterator[tuple[int, int]]:
    """``[start, stop)`` in parts of at most ``STEP`` that touch ``most`` blocks or fewer."""
    while start < stop:
        end = min(stop, start + STEP, (start // block + most) * block)
        yield start, end
        start = end
