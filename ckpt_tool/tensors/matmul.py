"""Matrix products of which every element has the same bits, however they are asked for.

A product adds up in an order that depends on the sizes of its operands. So a large one is made of
the products of blocks that lie on one grid, whichever rows are asked for; numpy makes them all in
one call. Blocks are so small that BLAS libraries take their short way for them, which does not
rearrange the factors first: up to rank 64 or so that is the time of the multiplications.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Rows of a block, unless so many rows of a wide matrix are more than a tile.
_ROWS = 16
#: Columns of a block, and its multiplications, at most; but columns at least.
_COLUMNS, _MULTIPLICATIONS, _FEWEST_COLUMNS = 512, 1 << 19, 64


class Grid(NamedTuple):
    """How a matrix is cut into blocks, of (rows, columns), and a tile into ``height`` rows."""

    rows: int
    columns: int
    height: int

    @classmethod
    def of(cls, width: int, rank: int, tile: int) -> Grid:
        """That of products [any, rank] @ [rank, width], where a tile has so many elements."""
        rows = max(1, min(_ROWS, tile // width))
        columns = max(_FEWEST_COLUMNS, min(_COLUMNS, _MULTIPLICATIONS // (_ROWS * max(1, rank))))
        return cls(rows, columns, max(1, tile // width // rows) * rows)

    def multiply(self, left: NDArray[Any], right: NDArray[Any], out: NDArray[Any]) -> None:
        """``left`` [R, r] @ ``right`` [r, C] into ``out`` [R, C]: rows from where a block begins.

        The last block has all its rows, or is the matrix's last one.
        """
        for rows, down in _cut(out.shape[0], self.rows):
            for columns, across in _cut(out.shape[1], self.columns):
                tall, wide = _blocks(left[rows], down, 1), _blocks(right[:, columns], 1, across)
                np.matmul(tall, wide, out=_blocks(out[rows, columns], down, across))


def _cut(length: int, step: int) -> Iterator[tuple[slice, int]]:
    """So many whole steps, and what is left of the last one: each part with its number of steps."""
    count, rest = divmod(length, step)
    if count:
        yield slice(0, count * step), count
    if rest:
        yield slice(count * step, length), 1


def _blocks(matrix: NDArray[Any], down: int, across: int) -> NDArray[Any]:
    """The same elements, none copied, as [down, across, rows and columns of a block]."""
    rows, columns = matrix.shape
    return matrix.reshape(down, rows // down, across, columns // across).transpose(0, 2, 1, 3)
