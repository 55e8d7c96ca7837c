"""Where the elements of a tensor lie: boxes of it, each with a region of a file.

In place of a file there may be an array that is computed when it is read (:class:`Computed`).
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple, Protocol, TypeVar

from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import (
    Box,
    Shape,
    cut_linear,
    dot,
    intersect,
    is_run,
    make_strides,
)
from ckpt_tool.tensors.rounding import CastErrors

T = TypeVar("T")

#: Chunks that are looked at one by one.
_FEW = 4


class Region(NamedTuple):
    """A strided block of elements in a file.

    ``offset`` is the byte position of element ``[0, ..., 0]``; ``strides`` are in elements. Where
    there is ``computed``, that takes the place of the file, and ``path`` is where its first operand
    begins.
    """

    path: str
    offset: int
    strides: Shape
    computed: Computed | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor and the region that holds its elements (region shape = box sizes)."""

    box: Box
    region: Region


def narrow_region(chunk: Chunk, common: Box, itemsize: int) -> Region:
    """The region of ``common``, a block inside the chunk's box; ``itemsize`` in bytes on disk."""
    path, offset, strides, computed = chunk.region
    skipped = dot(common.offsets, strides) - dot(chunk.box.offsets, strides)
    return Region(path, offset + skipped * itemsize, strides, computed)


class Piece(NamedTuple):
    """Part of a range of a tensor's row-major order, in one region: ``sizes`` elements of both.

    In the range it begins at element ``at`` and has ``strides``. ``is_run``: its elements are back
    to back in both.
    """

    at: int
    sizes: Shape
    strides: Shape
    region: Region
    is_run: bool

    @property
    def volume(self) -> int:
        """Number of elements."""
        return prod(self.sizes)


class OrderedChunks(Sequence[Chunk]):
    """Chunks by ascending offsets, whose order along the first dimension is known beforehand."""

    __slots__ = ()

    @property
    @abstractmethod
    def starts(self) -> tuple[int, ...]:
        """Where each begins along the first dimension; empty where there is none."""

    @property
    @abstractmethod
    def reach(self) -> int:
        """The most rows that one has."""


@dataclass(frozen=True, slots=True)
class Chunked:
    """A tensor of ``shape`` and ``dtype`` whose elements are in ``chunks``: what reading needs.

    The chunks tile the shape exactly; their elements have ``source_dtype`` in their files and are
    cast to ``dtype`` when read.
    """

    shape: Shape
    dtype: DType
    source_dtype: DType
    chunks: Sequence[Chunk]
    _starts: tuple[int, ...] = field(default=(), init=False, repr=False, compare=False)
    _reach: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.chunks, OrderedChunks):
            object.__setattr__(self, "_starts", self.chunks.starts)
            object.__setattr__(self, "_reach", self.chunks.reach)
            return
        if len(self.chunks) < 2:
            return
        chunks = tuple(sorted(self.chunks, key=lambda chunk: chunk.box.offsets))
        object.__setattr__(self, "chunks", chunks)
        if len(chunks) > _FEW:
            object.__setattr__(self, "_starts", tuple(c.box.offsets[0] for c in chunks))
            object.__setattr__(self, "_reach", max(c.box.sizes[0] for c in chunks))

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes, in ``dtype``."""
        return self.numel * self.dtype.itemsize

    @property
    def is_computed(self) -> bool:
        """Whether some elements are computed when read, and rounded to ``dtype`` once."""
        return any(chunk.region.computed is not None for chunk in self.chunks)

    @property
    def origin(self) -> DType:
        """The dtype that reports say elements are cast from: that on disk, where they say one."""
        for chunk in self.chunks:
            if chunk.region.computed is not None:
                return chunk.region.computed.origin
        return self.source_dtype

    def chunks_near(self, start: int, stop: int) -> Sequence[Chunk]:
        """The chunks that may reach into rows ``[start, stop)``, by ascending offsets."""
        if not self._starts:
            return self.chunks
        # Chunks are sorted by their first offset: no chunk further back than the longest one
        # reaches can touch the rows, so tensors of thousands of chunks are not scanned.
        first = bisect_left(self._starts, start - self._reach + 1)
        return self.chunks[first : bisect_left(self._starts, stop)]

    def chunks_in(self, box: Box) -> Iterator[tuple[Chunk, Box]]:
        """The chunks that meet ``box``, each with the common block, by ascending offsets."""
        near: Sequence[Chunk] = self.chunks
        if self._starts:
            near = self.chunks_near(box.offsets[0], box.offsets[0] + box.sizes[0])
        for chunk in near:
            common = intersect(chunk.box, box)
            if common is not None:
                yield chunk, common

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """The pieces of elements ``[start, stop)`` of the row-major order."""
        strides = make_strides(self.shape)
        for box in cut_linear(self.shape, start, stop):
            for chunk, common in self.chunks_in(box):
                at = dot(common.offsets, strides) - start
                region = narrow_region(chunk, common, self.source_dtype.itemsize)
                runs = is_run(common.sizes, strides) and is_run(common.sizes, region.strides)
                yield Piece(at, common.sizes, strides, region, runs)


class Reader(Protocol):
    """What computed arrays read their operands with; :class:`.BlockReader` is one.

    ``errors`` learns how much casts of these change them.
    """

    errors: CastErrors

    def read(self, tensor: Chunked, start: int, stop: int, out: memoryview) -> None:
        """Put elements ``[start, stop)`` of the row-major form into ``out``, in its dtype."""

    def keep(self, kind: type[T]) -> T:
        """The reader's only object of a kind, made when first asked for: memory to work in."""

    def share(self, kind: type[T]) -> T:
        """The same, of all readers of the same files, each of which is another thread's."""

    def spoil(self) -> None:
        """Told that finite elements of operands have made one that is not finite."""


class Filler(Protocol):
    """Computes boxes of a computed array; has memory of its own, so it serves one thread."""

    def fill(self, box: Box, out: memoryview) -> None:
        """Put the elements of ``box``, row-major, into ``out``, in the array's dtype."""

    def fill_rounded(self, box: Box, out: memoryview, dtype: DType, errors: CastErrors) -> bool:
        """Put the elements of ``box``, rounded to ``dtype``, into ``out``.

        ``errors`` learns by how much that changed them. False, with nothing done, from who has no
        faster way than :meth:`fill` and a cast: the default.
        """
        return False


class Computed(Protocol):
    """An array whose elements are computed when they are read, in place of a file.

    Its row-major elements count as the bytes of that file, from 0 on. An element must have the same
    bits whichever boxes are asked for.
    """

    @property
    def shape(self) -> Shape:
        """Sizes of the array, none of them 0."""

    @property
    def dtype(self) -> DType:
        """What elements are computed in; they are rounded from that, once."""

    @property
    def origin(self) -> DType:
        """What reports say that elements are cast from."""

    @property
    def operands(self) -> Sequence[Chunked]:
        """The tensors that elements are made of."""

    @property
    def recipe(self) -> str:
        """How they are made: equal recipes of equal operands give equal elements."""

    def open(self, reader: Reader) -> Filler:
        """What computes boxes; it alone uses ``reader``."""
