"""Strided blocks of files, put where a tensor has them.

They are read in the order they have on disk: straight into place where runs of bytes there are runs
of the tensor, else into scratch memory, of which numpy copies them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from ckpt_tool.tensors.chunks import Piece
from ckpt_tool.tensors.geometry import make_strides
from ckpt_tool.tensors.strided import (
    cut_common_runs,
    cut_runs,
    fills_span,
    measure_span,
    order_dims,
    view_strided,
)

#: A place in a file, in bytes, and the memory to fill from there on.
Part = tuple[int, memoryview]


class Files(Protocol):
    """What reads; :class:`~ckpt_tool.tensors.blocks.FileTable` does, and says what is raised."""

    def read_runs(
        self, path: str, offset: int, buffer: memoryview, run: int, starts: Iterable[int]
    ) -> None:
        """Fill ``buffer`` from byte ``offset`` of ``path``.

        Only runs of ``run`` bytes are wanted, which begin at ``starts`` in it.
        """

    def read_each(self, path: str, parts: Iterable[Part]) -> None:
        """Fill many short parts from one file."""


class StridedReader:
    """Reads blocks of ``files``; owns scratch memory, so use one per thread."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._scratch = bytearray()

    def take_memory(self, size: int) -> memoryview:
        """Scratch memory of ``size`` bytes, until somebody asks again."""
        if len(self._scratch) < size:
            self._scratch = bytearray(size)
        return memoryview(self._scratch)[:size]

    def put(self, piece: Piece, out: memoryview, itemsize: int) -> None:
        """Put a piece of a file into ``out``, which begins with its first element."""
        region, sizes = piece.region, piece.sizes
        order = order_dims(region.strides)
        in_file, here, there = (
            tuple(each[dim] for dim in order) for each in (sizes, piece.strides, region.strides)
        )
        run, starts = cut_runs(in_file, there, itemsize)
        if fills_span(sizes, region.strides):
            raw = self.take_memory(measure_span(sizes, region.strides) * itemsize)
            self._files.read_runs(region.path, region.offset, raw, run, starts)
            found = view_strided(raw, sizes, region.strides, itemsize)
        else:
            common, places = cut_common_runs(in_file, here, there, itemsize)
            if common == run:
                parts = ((region.offset + start, out[at : at + run]) for at, start in places)
                self._files.read_each(region.path, parts)
                return
            raw = self.take_memory(piece.volume * itemsize)
            self._files.read_each(region.path, _cut(raw, run, region.offset, starts))
            array = view_strided(raw, in_file, make_strides(in_file), itemsize)
            found = array.transpose([order.index(dim) for dim in range(len(sizes))])
        view_strided(out, sizes, piece.strides, itemsize)[...] = found


def _cut(raw: memoryview, run: int, offset: int, starts: Iterable[int]) -> Iterator[Part]:
    """Runs one after the other in ``raw``, and where each is in the file."""
    for number, start in enumerate(starts):
        yield offset + start, raw[number * run : (number + 1) * run]
