"""Low-rank updates, computed: a tile of whole rows at a time, rounded while it is in the cache.

Whichever range is asked for, products are made of the blocks of one grid (:class:`.Grid`).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import frexp, inf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.tensors.casts import Caster
from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.finite import has_unreal, is_made
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.matmul import Grid
from ckpt_tool.tensors.rounding import CastErrors
from ckpt_tool.tensors.scratch import Scratch

#: Elements per tile: few enough to stay in a cache, enough that threads rarely meet at the
#: interpreter lock.
TILE = 1 << 18

#: Tiles for which the operands are read at once.
_READ = 2


class Operands(NamedTuple):
    """What a matrix [R, C] is made of, and the dtype that it is computed in.

    ``lengths`` are those that its columns or rows are to have.
    """

    base: LazyTensor
    left: LazyTensor
    right: LazyTensor | None
    scale: float
    lengths: LazyTensor | None
    of_columns: bool
    dtype: DType


class _Rows(NamedTuple):
    """Rows of a matrix from ``top`` on; where it is the base, those of the left factor beside."""

    top: int
    values: NDArray[Any]
    left: NDArray[Any]

    @property
    def end(self) -> int:
        return self.top + len(self.values)

    def has(self, row: int) -> bool:
        return self.top <= row < self.end


class UpdateFiller(Filler):
    """Computes tiles of a matrix; keeps the last one and the right factor."""

    def __init__(self, matrix: Operands, reader: Reader) -> None:
        base = matrix.base.to(matrix.dtype) if matrix.base.is_computed else matrix.base
        self._matrix = matrix._replace(base=base, left=matrix.left.to(matrix.dtype))
        self._reader, self._scratch = reader, reader.keep(Scratch)
        self._grid = Grid.of(base.shape[1], matrix.left.shape[1], TILE)
        self._right = None if matrix.right is None else self._load(matrix.right)
        # A power of two changes exponents alone: a factor may take it, and saves a pass.
        self._is_shift = abs(frexp(matrix.scale)[0]) == 0.5
        self._read = self._tile = _Rows(0, *[np.empty((0, 1), matrix.dtype.name)] * 2)
        self._stretch: NDArray[Any] | None = None
        if matrix.lengths is not None and matrix.of_columns:
            self._stretch = self._find_stretch(matrix.lengths)

    def fill(self, box: Box, out: memoryview) -> None:
        """Put the elements of ``box``, row-major, into ``out``."""
        found = np.frombuffer(out, self._matrix.dtype.name).reshape(box.sizes)
        for rows, part in self._parts(box):
            found[rows] = part

    def fill_rounded(self, box: Box, out: memoryview, dtype: DType, errors: CastErrors) -> bool:
        """Put the elements of ``box``, rounded to ``dtype``, into ``out``."""
        exact, caster = self._matrix.dtype, self._reader.keep(Caster)
        names = exact.name, dtype.name
        found = np.frombuffer(out, dtype.carrier).reshape(box.sizes)
        for rows, part in self._parts(box):
            bits = np.ascontiguousarray(part).reshape(-1).view(exact.carrier)
            known = errors.largest_finite(*names)
            error = caster.cast(bits, exact, found[rows].reshape(-1), dtype, known)
            errors.learn(*names, error)
            if error == inf:
                self._reader.spoil()
        return True

    def _parts(self, box: Box) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Rows of ``box``, and their elements, which are to be used at once."""
        (row, column), (rows, columns) = box
        at, stop = row, row + rows
        while at < stop:
            if not self._tile.has(at):
                self._tile = self._compute(at // self._grid.rows * self._grid.rows, stop)
            tile = self._tile
            end = min(stop, tile.end)
            part = tile.values[at - tile.top : end - tile.top, column : column + columns]
            if has_unreal(part.reshape(-1)) and self._is_new(at, column, part):
                self._reader.spoil()
            yield slice(at - row, end - row), part
            at = end

    def _is_new(self, row: int, column: int, found: NDArray[Any]) -> bool:
        """Whether an element is not finite though all that it is made of is.

        ``found`` begins at (row, column) of the matrix.
        """
        matrix, (rows, columns) = self._matrix, found.shape
        across, down = slice(row, row + rows), slice(column, column + columns)
        left = self._load(matrix.left.narrow(0, row, rows))
        known = [self._load(matrix.base.narrow(0, row, rows).narrow(1, column, columns))]
        if self._right is None:
            known.append(left[:, down])
        else:
            known += [abs(left).max(axis=1)[:, None], abs(self._right[:, down]).max(axis=0)]
        if matrix.lengths is not None:
            lengths = self._load(matrix.lengths)
            known.append(lengths[down] if matrix.of_columns else lengths[across, None])
        return is_made(found, known)

    def _compute(self, top: int, stop: int) -> _Rows:
        """A tile from ``top`` on, where a block begins, as far as ``stop`` makes it useful."""
        tile, matrix = self._sum(top, stop), self._matrix
        with np.errstate(over="ignore", invalid="ignore"):
            if self._stretch is not None:
                tile.values[...] *= self._stretch
            elif matrix.lengths is not None:
                wanted = self._load(matrix.lengths.narrow(0, top, len(tile.values)))
                found = np.linalg.norm(tile.values, axis=1)
                tile.values[...] *= _lengthening(found, wanted)[:, None]
        return tile

    def _find_stretch(self, lengths: LazyTensor) -> NDArray[Any]:
        """What brings each column of the sum to its wanted length: reads all of it."""
        (rows, columns), top = self._matrix.base.shape, 0
        squares = np.zeros(columns)
        while top < rows:
            tile = self._sum(top, rows)
            squares += np.square(tile.values, dtype=np.float64).sum(axis=0)
            top = tile.end
        wanted = self._load(lengths)
        return _lengthening(np.sqrt(squares).astype(wanted.dtype), wanted)

    def _sum(self, top: int, stop: int) -> _Rows:
        """Base and update of the rows of a tile, in memory that the next one takes."""
        if not self._read.has(top):
            self._read = self._read_rows(top, stop)
        read, dtype = self._read, self._matrix.dtype.name
        part = slice(top - read.top, top - read.top + self._grid.height)
        base, left = self._widen(read.values[part]), read.left[part]
        tile = self._scratch.array("tile", base.shape, dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            if self._right is None:
                np.add(base, left, out=tile)
            else:
                self._grid.multiply(left, self._right, tile)
                if not self._is_shift:
                    tile *= tile.dtype.type(self._matrix.scale)
                np.add(base, tile, out=tile)
        return _Rows(top, tile, left)

    def _read_rows(self, top: int, stop: int) -> _Rows:
        """Operands of whole blocks from ``top`` on; the left factor scaled where that is exact."""
        matrix, step = self._matrix, self._grid.rows
        count = min(-(-stop // step) * step - top, _READ * self._grid.height)
        count = min(count, matrix.base.shape[0] - top)
        base, left = (
            self._fill(tensor, top, self._scratch.array(name, (count, tensor.shape[1]), carrier))
            for tensor, name, carrier in (
                (matrix.base, "base", matrix.base.dtype.carrier),
                (matrix.left, "left", matrix.dtype.name),
            )
        )
        if self._is_shift or self._right is None:
            with np.errstate(over="ignore", invalid="ignore"):
                left *= left.dtype.type(matrix.scale)
        return _Rows(top, base, left)

    def _widen(self, base: NDArray[Any]) -> NDArray[Any]:
        """Carrier elements of the base, in the dtype that is computed in."""
        found, exact = self._matrix.base.dtype, self._matrix.dtype
        if found == exact:
            return base.view(exact.name)
        wide = self._scratch.array("wide", base.shape, exact.carrier)
        self._reader.keep(Caster).cast(base.reshape(-1), found, wide.reshape(-1), exact, 0.0)
        return wide.view(exact.name)

    def _load(self, tensor: LazyTensor) -> NDArray[Any]:
        """A whole tensor in the dtype that the matrix is computed in."""
        loaded = np.empty(tensor.shape, self._matrix.dtype.name)
        return self._fill(tensor.to(self._matrix.dtype), 0, loaded)

    def _fill(self, tensor: LazyTensor, top: int, out: NDArray[Any]) -> NDArray[Any]:
        """``out``, filled with entries of the first dimension from ``top`` on."""
        if out.size:
            start = top * (out.size // len(out))
            self._reader.read(tensor, start, start + out.size, out.data.cast("B"))
        return out


def _lengthening(lengths: NDArray[Any], wanted: NDArray[Any]) -> NDArray[Any]:
    """What brings Euclidean lengths to those that are wanted."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: NDArray[Any] = wanted / lengths
    return found
