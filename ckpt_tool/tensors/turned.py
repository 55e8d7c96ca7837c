"""Matrices whose rows and columns change places, and may be of two kinds that take turns.

To read a matrix by its columns takes a call for each of its rows, or, of every other column, for
each element. So as many columns as fit into some memory are read at once, by all of their rows, and
those that are asked for are taken out of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Box, Shape
from ckpt_tool.tensors.lazy import LazyTensor, cat, hold
from ckpt_tool.tensors.nibbles import find_turned, turn_back

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Bytes of whole columns that are read at once, unless one alone has more.
_STRIP = 34 << 20
#: Elements on a side of the squares that are turned one by one, while they are in the cache.
_SIDE = 256

#: What becomes of pairs of columns, or of two halves of the rows.
Pairs = Literal["", "apart", "in turns"]


def turn(matrices: LazyTensor, pairs: Pairs = "") -> LazyTensor:
    """``[E, R, C]`` as ``[E, C, R]``; reads nothing.

    ``apart``: columns 0, 2, 4, ... become the first half of the rows, the others the second.
    ``in turns`` is the way back: the two halves of the rows become columns 0, 2, ... and 1, 3, ...
    What was turned when it was unpacked is unpacked as it lies.
    ValueError where it has other dimensions, or no two halves of what is halved.
    """
    shape = matrices.shape
    if len(shape) != 3 or (pairs and shape[2 if pairs == "apart" else 1] % 2):
        raise ValueError(f"{list(shape)}: no matrices that can be turned")
    turned = (shape[0], shape[2], shape[1])
    if not matrices.numel:
        return replace(matrices, shape=turned)
    nibbles = find_turned(matrices)
    if nibbles is not None and not pairs:
        return turn_back(nibbles, matrices.dtype)
    if nibbles is not None and pairs == "apart":
        return cat([turn_back(nibbles, matrices.dtype, side, 2) for side in (0, 1)], 1)
    plain = matrices if matrices.is_computed else replace(matrices, dtype=matrices.source_dtype)
    return hold(Turned(plain, turned, pairs), matrices.dtype, matrices)


@dataclass(frozen=True, slots=True, eq=False)
class Turned:
    """An array [E, C, R] of the elements of ``matrices`` [E, R, C]."""

    matrices: LazyTensor
    shape: Shape
    pairs: Pairs

    @property
    def dtype(self) -> DType:
        """That of the matrices: nothing is computed."""
        return self.matrices.dtype

    @property
    def origin(self) -> DType:
        """What the matrices have on disk."""
        return self.matrices.origin

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        """The matrices."""
        return (self.matrices,)

    @property
    def recipe(self) -> str:
        """What is turned, and how."""
        return f"turned {self.pairs}"

    def open(self, reader: Reader) -> Filler:
        """What turns them; reads nothing yet."""
        return _TurningFiller(self, reader)


class _TurningFiller(Filler):
    """Reads strips of columns, keeps the last, and turns what is asked for."""

    def __init__(self, turned: Turned, reader: Reader) -> None:
        from ckpt_tool.tensors.scratch import Scratch

        self._turned, self._reader = turned, reader
        self._scratch = reader.keep(Scratch)
        self._kept: tuple[int, int, int] = (-1, 0, 0)
        self._strip: NDArray[Any] | None = None

    def fill(self, box: Box, out: memoryview) -> None:
        """Put the elements of ``box``, row-major, into ``out``."""
        import numpy as np

        found = np.frombuffer(out, f"<u{self._turned.dtype.itemsize}").reshape(box.sizes)
        (first, row, column), (_, rows, columns) = box
        for number, target in enumerate(found):
            for start, length, step, part in self._cut_rows(row, rows, target):
                strip = self._take(first + number, start, (length - 1) * step + 1)[:, ::step]
                for source, goal in self._cut_columns(column, columns, strip, part):
                    _copy_turned(source, goal)

    def _cut_rows(
        self, row: int, rows: int, target: NDArray[Any]
    ) -> Iterator[tuple[int, int, int, NDArray[Any]]]:
        """The first column of the matrix, how many, how far apart, and the rows that they become.

        Of pairs the same columns are read for both halves where both are asked for.
        """
        if self._turned.pairs != "apart":
            yield row, rows, 1, target
            return
        half = self._turned.shape[1] // 2
        for side in (0, 1):
            start, stop = max(row - side * half, 0), min(row + rows - side * half, half)
            if start < stop:
                at = start + side * half - row
                yield 2 * start + side, stop - start, 2, target[at : at + stop - start]

    def _cut_columns(
        self, column: int, columns: int, strip: NDArray[Any], part: NDArray[Any]
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """What of the rows of the matrix becomes which of the columns that are asked for."""
        if self._turned.pairs != "in turns":
            yield strip[column : column + columns], part
            return
        half = self._turned.shape[2] // 2
        for side in (0, 1):
            skipped = (side - column) % 2
            start, count = (column + skipped) // 2, len(range(skipped, columns, 2))
            rows = slice(side * half + start, side * half + start + count)
            yield strip[rows], part[:, skipped::2]

    def _take(self, number: int, start: int, length: int) -> NDArray[Any]:
        """Columns of a matrix by all of its rows: those that were read, or as many as fit."""
        kept, first, last = self._kept
        if kept != number or not first <= start <= start + length <= last:
            self._strip = None
            first, last = self._choose(start, length)
            self._strip, self._kept = self._read(number, first, last), (number, first, last)
        assert self._strip is not None
        return self._strip[:, start - first : start - first + length]

    def _choose(self, start: int, length: int) -> tuple[int, int]:
        """The columns to read: those that are asked for, and as many after them as fit."""
        _, rows, columns = self._turned.matrices.shape
        fits = max(1, _STRIP // (rows * self._turned.dtype.itemsize))
        if fits >= columns:
            return 0, columns
        return start, min(columns, max(start + length, start + fits))

    def _read(self, number: int, first: int, last: int) -> NDArray[Any]:
        part = self._turned.matrices.narrow(0, number, 1).narrow(2, first, last - first)
        kind = f"<u{self._turned.dtype.itemsize}"
        found = self._scratch.array("turned", part.shape[1:], kind)
        self._reader.read(part, 0, part.numel, found.data.cast("B"))
        return found


def _copy_turned(source: NDArray[Any], target: NDArray[Any]) -> None:
    """``target[...] = source.T``, square by square."""
    rows, columns = source.shape
    for top in range(0, rows, _SIDE):
        for left in range(0, columns, _SIDE):
            square = source[top : top + _SIDE, left : left + _SIDE]
            target[left : left + _SIDE, top : top + _SIDE] = square.T
