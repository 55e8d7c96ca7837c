"""A tensor each of whose rows is there several times: gates that a head has one of.

A region of a file cannot say so without a chunk for each row; here the rows that are asked for are
read once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.geometry import Box, Shape
from ckpt_tool.tensors.lazy import LazyTensor, hold
from ckpt_tool.tensors.moved import Moved, MovingFiller


@dataclass(frozen=True, slots=True, eq=False)
class Repeated(Moved):
    """An array [N * times, ...] of the rows of ``tensor`` [N, ...], each ``times`` in a row."""

    times: int

    @property
    def shape(self) -> Shape:
        """That of the tensor, with more rows."""
        rows, *rest = self.tensor.shape
        return (rows * self.times, *rest)

    @property
    def recipe(self) -> str:
        """How often each row is there."""
        return f"rows {self.times} times"

    def open(self, reader: Reader) -> Filler:
        """What repeats them; reads nothing yet."""
        return _RepeatFiller(self, reader)


class _RepeatFiller(MovingFiller):
    """Reads the rows of a box once, and puts each where it is wanted."""

    moved: Repeated

    def __init__(self, repeated: Repeated, reader: Reader, origin: Moved | None = None) -> None:
        from ckpt_tool.tensors.scratch import Scratch

        super().__init__(repeated, reader, origin)
        self._scratch = reader.keep(Scratch)

    def fill(self, box: Box, out: memoryview) -> None:
        """Put the elements of ``box``, row-major, into ``out``."""
        import numpy as np

        tensor, times = self.moved.tensor, self.moved.times
        (start, *rest), (count, *sizes) = box
        first, last = start // times, (start + count - 1) // times
        part = tensor.narrow(0, first, last - first + 1)
        for dim, (offset, size) in enumerate(zip(rest, sizes, strict=True), 1):
            part = part.narrow(dim, offset, size) if size != part.shape[dim] else part
        kind = f"<u{tensor.dtype.itemsize}"
        rows = self._scratch.array("repeated", part.shape, kind)
        self.reader.read(part, 0, part.numel, rows.data.cast("B"))
        found = np.frombuffer(out, kind).reshape(box.sizes)
        np.take(
            rows, np.arange(start, start + count) // times - first, axis=0, out=found, mode="clip"
        )


def repeat(tensor: LazyTensor, times: int) -> LazyTensor:
    """``tensor`` [N, ...] as [N * times, ...], each row ``times`` in a row; reads nothing.

    ValueError where it has no rows, or none of them is to be there.
    """
    if not tensor.shape or times < 1:
        raise ValueError(f"{list(tensor.shape)}: no rows to have {times} times")
    if not tensor.numel:
        return replace(tensor, shape=(tensor.shape[0] * times, *tensor.shape[1:]))
    return hold(Repeated(tensor.uncast, times), tensor.dtype, tensor)
