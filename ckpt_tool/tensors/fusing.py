"""Matrices with a low-rank update, computed a tile of whole rows at a time.

Tiles begin at the same rows whichever range is asked for: a matrix product adds up in an order that
depends on the sizes of its operands, and an element must not depend on how blocks are cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.tensors.dtypes import FLOAT64
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.lowrank import LowRank

if TYPE_CHECKING:
    from ckpt_tool.tensors.blocks import BlockReader

#: Elements per tile: few enough to stay in a core's cache and to waste little where a block of
#: output ends within one, enough that threads rarely meet at the interpreter lock.
TILE = 1 << 18

Matrix = NDArray[Any]


class Fuser:
    """Computes tiles; keeps the last one and its right factor: one per thread."""

    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader
        self._matrix: LowRank | None = None
        self._right: Matrix = np.empty((0, 0))
        self._number = -1
        self._tile: Matrix = np.empty((0, 0))

    def read(self, matrix: LowRank, offset: int, out: memoryview) -> None:
        """Fill ``out`` from byte ``offset`` of ``matrix``, row-major in its ``dtype``."""
        if matrix is not self._matrix:
            self._matrix, self._number = matrix, -1
            self._right = self._load(matrix, matrix.right)
        step = _rows(matrix) * matrix.columns * matrix.dtype.itemsize
        end = offset + len(out)
        for number in range(offset // step, -(-end // step)):
            if number != self._number:
                self._number, self._tile = number, self._compute(matrix, number)
            content = self._tile.data.cast("B")
            start, stop = max(offset, number * step), min(end, (number + 1) * step)
            part = content[start - number * step : stop - number * step]
            out[start - offset : stop - offset] = part

    def _compute(self, matrix: LowRank, number: int) -> Matrix:
        start = number * _rows(matrix)
        length = min(_rows(matrix), matrix.base.shape[0] - start)
        base = self._load(matrix, matrix.base.narrow(0, start, length))
        left = self._load(matrix, matrix.left.narrow(0, start, length))
        with np.errstate(over="ignore", invalid="ignore"):
            product = left @ self._right
            product *= base.dtype.type(matrix.scale)
            base += product
            if matrix.magnitude is not None:
                wanted = self._load(matrix, matrix.magnitude.narrow(0, start, length))
                base *= _factors(base, wanted)[:, None]
        return base

    def _load(self, matrix: LowRank, tensor: LazyTensor) -> Matrix:
        """A whole tensor in the dtype that ``matrix`` is computed in."""
        tensor = tensor.to(matrix.dtype)
        loaded = np.empty(tensor.shape, np.float64 if matrix.dtype == FLOAT64 else np.float32)
        if loaded.size:
            self._reader.read(tensor, 0, tensor.numel, loaded.data.cast("B"))
        return loaded


def _factors(rows: Matrix, wanted: Matrix) -> Matrix:
    """What brings each row to its wanted Euclidean length."""
    with np.errstate(divide="ignore"):
        found: Matrix = wanted / np.linalg.norm(rows, axis=1)
    return found


def _rows(matrix: LowRank) -> int:
    return max(1, TILE // matrix.columns)
