"""Blocks of one range of a tensor, one after the other, planned once for all of them.

Where pieces lie is the same from block to block but for what the blocks before took: finding that
out anew for each would take as long as reading it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from ckpt_tool.tensors.blocks import BlockReader
from ckpt_tool.tensors.chunks import Chunked, Piece, Region
from ckpt_tool.tensors.geometry import Shape, dot, is_run, make_strides

#: Looking through more strips for each block is no faster than planning it anew.
_MOST_STRIPS = 256


class Strip(NamedTuple):
    """``rows`` rows of a piece; the first begins at the tensor's element ``at``.

    A row has ``sizes``; ``strides`` are the tensor's, from row to row and in rows. ``is_run``: all
    rows are back to back in the tensor and in their file.
    """

    at: int
    rows: int
    sizes: Shape
    strides: Shape
    region: Region
    is_run: bool

    def cut(self, start: int, stop: int, itemsize: int) -> Piece | None:
        """What it has of ``[start, stop)``, whole rows of the tensor; None: nothing."""
        pitch = self.strides[0]
        row = self.at // pitch
        first, last = max(0, start // pitch - row), min(self.rows, stop // pitch - row)
        if first >= last:
            return None
        path, offset, strides, _ = self.region
        moved = Region(path, offset + first * strides[0] * itemsize, strides)
        at = self.at + first * pitch - start
        return Piece(at, (last - first, *self.sizes), self.strides, moved, self.is_run)


class Sweep:
    """Reads blocks of the elements ``span``, from one to before another, of ``tensor``.

    Blocks have ``step`` elements, but for the last. Those of whole rows are fast: :func:`find_step`
    gives such a step; ``span`` then begins with a row too.
    """

    def __init__(
        self, reader: BlockReader, tensor: Chunked, span: tuple[int, int], step: int
    ) -> None:
        self._reader, self._tensor = reader, tensor
        self._pitch = _find_pitch(tensor.shape, step)
        self._strips = _cut_strips(tensor, span, self._pitch)

    def read(self, start: int, stop: int, out: memoryview) -> None:
        """Put elements ``[start, stop)`` into ``out``; raises what :meth:`.BlockReader.read` does.

        ``out`` has exactly the size of the elements in the tensor's dtype.
        """
        if self._strips is None or start % self._pitch or stop % self._pitch:
            self._reader.read(self._tensor, start, stop, out)
            return
        size = self._tensor.dtype.itemsize
        pieces = (strip.cut(start, stop, size) for strip in self._strips)
        self._reader.gather((piece for piece in pieces if piece is not None), out, size)


def find_step(shape: Shape, most: int) -> int:
    """The largest number of elements up to ``most`` that is whole rows of a tensor of ``shape``."""
    pitch = _find_pitch(shape, most)
    return most // pitch * pitch


def _find_pitch(shape: Shape, most: int) -> int:
    """The elements of a row: of the outermost dimension of which one entry is at most ``most``."""
    return next((stride for stride in make_strides(shape) if 0 < stride <= most), 1)


def _cut_strips(tensor: Chunked, span: tuple[int, int], pitch: int) -> list[Strip] | None:
    """The strips of a range; None where blocks of it are better read by themselves."""
    if not tensor.shape or tensor.dtype != tensor.source_dtype or tensor.is_computed:
        return None
    found: list[Strip] = []
    for piece in tensor.pieces(*span):
        found += _split(piece, span[0], pitch, tensor.dtype.itemsize)
        if len(found) > _MOST_STRIPS:
            return None
    return found


def _split(piece: Piece, start: int, pitch: int, itemsize: int) -> Iterator[Strip]:
    """A piece as strips: dimensions outside of that of the rows are taken apart."""
    outer = next(d for d, stride in enumerate(piece.strides) if stride <= pitch)
    path, offset, steps, _ = piece.region
    sizes, strides = piece.sizes[outer:], piece.strides[outer:]
    runs = is_run(sizes, strides) and is_run(sizes, steps[outer:])
    for index in product(*map(range, piece.sizes[:outer])):
        at = start + piece.at + dot(index, piece.strides[:outer])
        moved = offset + dot(index, steps[:outer]) * itemsize
        region = Region(path, moved, steps[outer:])
        yield Strip(at, sizes[0], sizes[1:], strides, region, runs)
