"""Every n-th column of a matrix, as a tensor of its own.

A file has such columns an element at a time, too far apart to be read one by one: rows are read
whole, a few at once, and the columns taken out of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.geometry import Box, Shape
from ckpt_tool.tensors.lazy import LazyTensor, hold
from ckpt_tool.tensors.moved import Moved

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Bytes of whole rows that are read at once.
STEP = 2 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Columns(Moved):
    """Columns ``first``, ``first + step``, ... of a matrix ``tensor`` [R, C]."""

    first: int
    step: int

    @property
    def shape(self) -> Shape:
        """[R, number of columns taken]."""
        rows, columns = self.tensor.shape
        return rows, len(range(self.first, columns, self.step))

    @property
    def recipe(self) -> str:
        """Which columns."""
        return f"columns {self.first}::{self.step}"

    def open(self, reader: Reader) -> Filler:
        """What takes them; reads nothing yet."""
        return ColumnFiller(self, reader)


class ColumnFiller(Filler):
    """Reads rows and keeps some of their columns."""

    def __init__(self, columns: Columns, reader: Reader) -> None:
        self._columns, self._reader = columns, reader

    def fill(self, box: Box, out: memoryview) -> None:
        """Put the elements of ``box``, row-major, into ``out``."""
        import numpy as np

        (row, column), (rows, length) = box
        matrix, kind = self._columns.tensor, f"<u{self._columns.dtype.itemsize}"
        found = np.frombuffer(out, kind).reshape(box.sizes)
        begin = self._columns.first + column * self._columns.step
        taken = slice(begin, begin + (length - 1) * self._columns.step + 1, self._columns.step)
        step = max(1, STEP // (matrix.shape[1] * matrix.dtype.itemsize))
        for at in range(row, row + rows, step):
            end = min(at + step, row + rows)
            found[at - row : end - row] = self._rows(at, end, kind)[:, taken]

    def _rows(self, start: int, stop: int, kind: str) -> NDArray[Any]:
        import numpy as np

        matrix = self._columns.tensor
        rows = np.empty((stop - start, matrix.shape[1]), kind)
        width = matrix.shape[1]
        self._reader.read(matrix, start * width, stop * width, rows.data.cast("B"))
        return rows


def take_columns(matrix: LazyTensor, first: int, step: int) -> LazyTensor:
    """Columns ``first``, ``first + step``, ... of ``matrix`` [R, C]; reads nothing.

    ValueError where it is no matrix, or has no such column.
    """
    if len(matrix.shape) != 2 or not 0 <= first < matrix.shape[1] or step < 1:
        raise ValueError(f"columns {first}::{step} of a tensor of shape {list(matrix.shape)}")
    if step == 1 and not first:
        return matrix
    computed = Columns(matrix, first, step)
    if not matrix.numel:
        return LazyTensor(computed.shape, matrix.dtype, matrix.dtype, ())
    return hold(computed, matrix.dtype, matrix)
