"""Block-scaled fp8 to wider floats: exact products in float32, each rounded once.

A block has one factor and an fp8 element only 256 values, so the 256 results of each block are
computed once and the elements looked up: for blocks of 128 x 128, 64 times fewer roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.tensors.casts import Caster
from ckpt_tool.tensors.dtypes import FLOAT32, DType
from ckpt_tool.tensors.lazy import Scales
from ckpt_tool.tensors.scaled import Piece

#: Elements per step: their 8-byte indices stay in the second-level cache.
STEP = 1 << 16

_CODES = 256
#: Blocks side by side in a table: 32768 columns of the usual blocks, and at most 512 KiB.
_BLOCKS = 256


class _Band(NamedTuple):
    """The blocks of one row of scales, with the target of their products."""

    scales: Scales
    number: int
    target: DType


@dataclass(frozen=True, slots=True)
class _Table:
    """Results by ``[block - first, fp8 bits]``, flat, of some blocks of a band.

    ``exact`` are the products in float32, ``bits`` carrier elements of the target. No finite
    product was rounded by more than ``worst``.
    """

    band: _Band
    first: int
    exact: NDArray[np.float32]
    bits: NDArray[Any]
    worst: float

    def covers(self, band: _Band, first: int, last: int) -> bool:
        """Whether blocks ``[first, last)`` of ``band`` are here."""
        end = self.first + len(self.bits) // _CODES
        return self.first <= first and last <= end and self.band == band

    def largest_error(self, index: NDArray[np.intp], caster: Caster) -> float:
        """The largest rounding error of the results at ``index``; inf where one overflowed."""
        rounded = np.empty(self.exact.shape, np.float32)
        caster.cast(self.bits, self.band.target, rounded.view(np.uint32), FLOAT32, 0.0)
        with np.errstate(invalid="ignore"):
            errors = np.abs(self.exact - rounded)
        errors[~np.isfinite(self.exact)] = 0.0
        return float(np.take(errors, index, mode="clip").max())


class Dequantiser:
    """Multiplies fp8 with scales; owns scratch memory and the last table: one per thread.

    ``read(path, offset, buffer)`` fills a buffer from a file.
    """

    def __init__(self, read: Callable[[str, int, memoryview], None], caster: Caster) -> None:
        self._read, self._caster = read, caster
        self._table: _Table | None = None
        self._index = np.zeros(STEP, np.intp)
        self._pattern = (0, 0, 0)  # phase, columns and block width that the index is filled for
        self._filled = 0  # rows

    def put(
        self, raw: NDArray[Any], piece: Piece, out: NDArray[Any], target: DType, floor: float
    ) -> float:
        """Put the products of ``raw``, the bytes of ``piece``, into ``out`` as ``target``.

        Both arrays are ``[rows, columns]`` with any strides; ``out`` has carrier elements. Returns
        the largest absolute error of rounding a finite product to ``target``, at least ``floor``.
        """
        scales, row, column, (rows, columns), _ = piece
        height, width = scales.block
        for top, bottom in _cuts(row, row + rows, height, 1):
            band = _Band(scales, top // height, target)
            for left, right in _cuts(column, column + columns, width, _BLOCKS):
                part = np.s_[top - row : bottom - row, left - column : right - column]
                table = self._table_for(band, left // width, -(-right // width), floor)
                floor = self._look_up(table, raw[part], left, out[part], floor)
        return floor

    def _look_up(
        self, table: _Table, raw: NDArray[Any], left: int, out: NDArray[Any], floor: float
    ) -> float:
        """:meth:`put` of bytes from column ``left`` on that have their results in ``table``."""
        width = table.band.scales.block[1]
        phase = left - table.first * width
        step = STEP // raw.shape[1]
        for at in range(0, len(raw), step):
            index = self._indices(raw[at : at + step], phase, width)
            np.take(table.bits, index, out=out[at : at + step], mode="clip")
            if table.worst > floor:
                floor = max(floor, table.largest_error(index, self._caster))
        return floor

    def _indices(self, raw: NDArray[Any], phase: int, width: int) -> NDArray[np.intp]:
        """Where in a table the result of each byte is.

        The first byte is ``phase`` columns from the beginning of the table, with blocks of
        ``width`` columns. The number of its block, times 256, is there from the last step, or
        filled in; the byte itself is stored as the lowest one of the index, which spares a sum.
        """
        rows, columns = raw.shape
        begin, length, block = self._pattern
        fits = block == width and begin <= phase and phase + columns <= begin + length
        if not fits or rows > (self._filled if columns == length else 1):
            numbers = np.arange(phase, phase + columns) // width * _CODES
            self._index[: rows * columns].reshape(rows, columns)[...] = numbers
            self._pattern, self._filled = (phase, columns, width), rows
            begin = phase
        skip = phase - begin  # a part of a row needs part of the same
        index = self._index[skip : skip + rows * columns].reshape(rows, columns)
        index.view(np.uint8).reshape(rows, columns, -1)[:, :, 0] = raw
        return index

    def _table_for(self, band: _Band, first: int, last: int, floor: float) -> _Table:
        """A table with blocks ``[first, last)`` of a band.

        The last one may have them and more: ranges of elements begin and end within rows.
        """
        if self._table is None or not self._table.covers(band, first, last):
            factors = self._factors(band, first, last)
            with np.errstate(over="ignore", invalid="ignore"):
                exact = (factors[:, None] * _VALUES).reshape(-1)
            bits = np.empty(exact.shape, band.target.carrier)
            words = exact.view(np.uint32)
            worst = self._caster.cast(words, FLOAT32, bits, band.target, floor)
            self._table = _Table(band, first, exact, bits, worst)
        return self._table

    def _factors(self, band: _Band, first: int, last: int) -> NDArray[np.float32]:
        scales = band.scales
        size = scales.dtype.itemsize
        per_band = -(-scales.columns // scales.block[1])
        raw = memoryview(bytearray((last - first) * size))
        self._read(scales.path, scales.offset + (band.number * per_band + first) * size, raw)
        factors = np.empty(last - first, np.float32)
        self._caster.cast_bytes(raw, scales.dtype, factors.data.cast("B"), FLOAT32, 0.0)
        return factors


def _cuts(start: int, stop: int, block: int, most: int) -> Iterator[tuple[int, int]]:
    """``[start, stop)`` in parts of at most ``STEP`` that touch ``most`` blocks or fewer."""
    while start < stop:
        end = min(stop, start + STEP, (start // block + most) * block)
        yield start, end
        start = end


def _values() -> NDArray[np.float32]:
    """The value of each of the 256 bit patterns: subnormals, no infinities, two NaNs."""
    codes = np.arange(_CODES)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    significand = np.where(exponent > 0, mantissa + 8, mantissa).astype(np.float32)
    values: NDArray[np.float32] = np.ldexp(significand, np.maximum(exponent, 1) - 10)
    values[codes & 127 == 127] = np.nan
    values[codes >= 128] *= -1
    return values


_VALUES = _values()
