"""Matrices whose rows and columns change places, and may be of two kinds that take turns.

To read a matrix by its columns takes a call for each of its rows, or, of every other column, for
each element. So as many columns as fit into some memory are read at once, by all of their rows, and
those that are asked for are taken out of them, by all threads that want some.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.geometry import Box, Shape
from ckpt_tool.tensors.lazy import LazyTensor, cat, hold
from ckpt_tool.tensors.moved import Moved, MovingFiller
from ckpt_tool.tensors.nibbles import find_turned, turn_back

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Elements on a side of the squares that are turned one by one, while they are in the cache.
_SIDE = 256
#: Bytes that are fetched into the cache at once; rows of so many have few places in it.
_LINE, _CROWDED = 64, 512

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
    return hold(Turned(matrices.uncast, turned, pairs), matrices.dtype, matrices)


@dataclass(frozen=True, slots=True, eq=False)
class Turned(Moved):
    """An array [E, C, R] of the elements of ``tensor`` [E, R, C]."""

    shape: Shape
    pairs: Pairs

    @property
    def recipe(self) -> str:
        """What is turned, and how."""
        return f"turned {self.pairs}"

    def open(self, reader: Reader) -> Filler:
        """What turns them; reads nothing yet."""
        return _TurningFiller(self, reader)


class _TurningFiller(MovingFiller):
    """Turns what is asked for of strips of columns, which threads read together."""

    moved: Turned

    def __init__(self, turned: Turned, reader: Reader, origin: Moved | None = None) -> None:
        from ckpt_tool.tensors.scratch import Scratch
        from ckpt_tool.tensors.strips import STRIP_BYTES, Strips

        super().__init__(turned, reader, origin)
        self._strips = reader.share(Strips)
        self._kind = f"<u{turned.dtype.itemsize}"
        shape = (_SIDE, _SIDE + _LINE // turned.dtype.itemsize)
        self._square = reader.keep(Scratch).array("square", shape, self._kind)
        _, rows, columns = turned.tensor.shape
        fits = STRIP_BYTES // (rows * turned.dtype.itemsize)
        self._wide = columns if fits >= columns else max(2, fits // 2 * 2)

    def fill(self, box: Box, out: memoryview) -> None:
        """Put the elements of ``box``, row-major, into ``out``."""
        import numpy as np

        found = np.frombuffer(out, self._kind).reshape(box.sizes)
        (first, row, column), (_, rows, _) = box
        for number, target in enumerate(found, first):
            for columns, part in self._cut_rows(row, rows, target):
                for strip, at in self._cut_strips(columns):
                    with self._take(number, strip) as matrix:
                        taken = columns[at]
                        near = slice(
                            taken.start - strip.start, taken.stop - strip.start, taken.step
                        )
                        self._copy(matrix[:, near], column, part[at])

    def _cut_rows(
        self, row: int, rows: int, target: NDArray[Any]
    ) -> Iterator[tuple[range, NDArray[Any]]]:
        """Columns of the matrix, and the rows that they become."""
        if self.moved.pairs != "apart":
            yield range(row, row + rows), target
            return
        half = self.moved.shape[1] // 2
        for side in (0, 1):
            start, stop = max(row - side * half, 0), min(row + rows - side * half, half)
            if start < stop:
                at = start + side * half - row
                yield range(2 * start + side, 2 * stop + side, 2), target[at : at + stop - start]

    def _cut_strips(self, columns: range) -> Iterator[tuple[range, slice]]:
        """The strips that have these columns, each with which of them it has."""
        done = 0
        while done < len(columns):
            first = columns[done] // self._wide * self._wide
            last = min(first + self._wide, self.moved.tensor.shape[2])
            more = len(range(columns[done], min(last, columns.stop), columns.step))
            yield range(first, last), slice(done, done + more)
            done += more

    def _take(self, number: int, columns: range) -> AbstractContextManager[NDArray[Any]]:
        """These columns of a matrix, by all of its rows."""
        matrices, size = self.moved.tensor, len(columns)
        part = matrices.narrow(0, number, 1).narrow(2, columns.start, size)

        def read(first: int, last: int, out: memoryview) -> None:
            self.reader.read(part, first * size, last * size, out)

        key = self.origin, self.moved.dtype, number, columns
        return self._strips.take(key, (matrices.shape[1], size), self._kind, read)

    def _copy(self, strip: NDArray[Any], column: int, target: NDArray[Any]) -> None:
        """Turn columns of the matrix into ``target``, whose first column is ``column`` of all."""
        rows, columns = target.shape
        for left in range(0, columns, _SIDE):
            wide = min(_SIDE, columns - left)
            for top in range(0, rows, _SIDE):
                square = self._gather(strip[:, top : top + _SIDE], column + left, wide)
                target[top : top + _SIDE, left : left + wide] = square.T

    def _gather(self, strip: NDArray[Any], column: int, wide: int) -> NDArray[Any]:
        """What becomes ``wide`` columns from ``column`` on, as rows.

        Where elements below one another would take each other's place in the cache they are
        moved apart first.
        """
        square = self._square[:wide, : strip.shape[1]]
        if self.moved.pairs == "in turns":
            half = self.moved.shape[2] // 2
            for skipped in (0, 1):
                side, at = (column + skipped) % 2, (column + skipped) // 2
                rows = square[skipped::2]
                rows[...] = strip[side * half + at : side * half + at + len(rows)]
            return square
        part = strip[column : column + wide]
        if part.strides[0] % _CROWDED:
            return part
        square[...] = part
        return square
