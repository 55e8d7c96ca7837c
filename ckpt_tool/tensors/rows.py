"""A tensor of which some rows are those of another tensor, of whatever dtype that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.dtypes import CASTABLE, FLOAT32, FLOAT64, DType
from ckpt_tool.tensors.geometry import Box, Shape
from ckpt_tool.tensors.lazy import LazyTensor, cat, hold


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """Tensors of several dtypes one after the other along their first dimension.

    ``dtype`` holds the elements of each exactly.
    """

    parts: tuple[LazyTensor, ...]
    dtype: DType

    @property
    def origin(self) -> DType:
        """What is rounded are elements of the widest."""
        return self.dtype

    @property
    def shape(self) -> Shape:
        """Theirs, but for the first dimension, which is their sum."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        """The parts."""
        return self.parts

    @property
    def recipe(self) -> str:
        """One after the other."""
        return "joined"

    def open(self, reader: Reader) -> Filler:
        """What reads them; reads nothing yet."""
        return JoinFiller(self, reader)


class JoinFiller(Filler):
    """Reads each part in the dtype of all."""

    def __init__(self, joined: Joined, reader: Reader) -> None:
        self._joined, self._reader = joined, reader

    def fill(self, box: Box, out: memoryview) -> None:
        """Put the elements of ``box``, row-major, into ``out``."""
        start = done = 0
        for part in self._joined.parts:
            first = max(box.offsets[0] - start, 0)
            rows = min(box.offsets[0] + box.sizes[0] - start, part.shape[0]) - first
            if rows > 0:
                inner = Box((first, *box.offsets[1:]), (rows, *box.sizes[1:]))
                size = inner.volume * self._joined.dtype.itemsize
                self._read(part.to(self._joined.dtype), inner, out[done : done + size])
                done += size
            start += part.shape[0]

    def _read(self, part: LazyTensor, box: Box, out: memoryview) -> None:
        for dim, (offset, size) in enumerate(zip(*box, strict=True)):
            if size != part.shape[dim]:
                part = part.narrow(dim, offset, size)
        self._reader.read(part, 0, part.numel, out)


def replace_rows(tensor: LazyTensor, rows: Sequence[int], by: LazyTensor) -> LazyTensor:
    """``tensor`` [N, ...] with row ``rows[i]`` taken from ``by[i]``; as ``tensor.dtype``.

    Where the dtypes differ, what is taken is rounded once, to whatever dtype the result is cast to.
    ValueError where a row is not there or named twice, or a shape or a dtype does not fit.
    """
    _check(tensor, rows, by)
    parts = list(_alternate(tensor, rows, by))
    same = (tensor.dtype, tensor.source_dtype) == (by.dtype, by.source_dtype)
    if same and not tensor.is_computed and not by.is_computed:
        return cat(parts, 0)
    return join_rows(parts, tensor)


def join_rows(parts: Sequence[LazyTensor], whole: LazyTensor | None = None) -> LazyTensor:
    """``parts`` one after the other, of whatever dtypes; in that of ``whole``, or of the first.

    What is of another dtype is rounded once.
    """
    whole = whole or parts[0]
    plain = [each.uncast for each in parts]
    dtype = FLOAT64 if any(each.dtype == FLOAT64 for each in plain) else FLOAT32
    return hold(Joined(tuple(plain), dtype), whole.dtype, whole)


def _alternate(tensor: LazyTensor, rows: Sequence[int], by: LazyTensor) -> Iterator[LazyTensor]:
    """What stays and what takes its place, by ascending rows."""
    order = sorted(range(len(rows)), key=rows.__getitem__)
    start = 0
    for index in order:
        row = rows[index]
        if row > start:
            yield tensor.narrow(0, start, row - start)
        yield by.narrow(0, index, 1)
        start = row + 1
    if start < tensor.shape[0]:
        yield tensor.narrow(0, start, tensor.shape[0] - start)


def _check(tensor: LazyTensor, rows: Sequence[int], by: LazyTensor) -> None:
    if by.shape != (len(rows), *tensor.shape[1:]):
        raise ValueError(
            f"rows of shape {list(by.shape)}, expected {[len(rows), *tensor.shape[1:]]}"
        )
    absent = sorted(row for row in rows if not 0 <= row < tensor.shape[0])
    if absent or len(set(rows)) != len(rows):
        wrong = f"no rows {absent}" if absent else f"rows twice in {list(rows)}"
        raise ValueError(f"{wrong} of a tensor of shape {list(tensor.shape)}")
    for each in (tensor, by):
        if each.dtype not in CASTABLE:
            raise ValueError(f"{each.dtype}, expected a floating-point type of 16 bits or more")
