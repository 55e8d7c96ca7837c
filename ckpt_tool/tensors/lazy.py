"""Lazy tensors: a shape, a dtype, and where in which files the elements lie.

Operations (``narrow``, ``cat``, ``stack``, ...) are geometry on chunks and read nothing. Bytes
move when :mod:`ckpt_tool.tensors.blocks` is asked for a range of the row-major form, or when
:meth:`LazyTensor.read` is called.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from ckpt_tool.tensors.dtypes import BY_NAME, CASTABLE, DType
from ckpt_tool.tensors.geometry import Box, Shape, dot, intersect

if TYPE_CHECKING:
    import torch

    from ckpt_tool.tensors.lowrank import LowRank


#: What scales turn into weights: one byte, sign and 4 bits of exponent and 3 of mantissa.
FLOAT8 = BY_NAME["float8_e4m3fn"]


class Scales(NamedTuple):
    """What the elements of a row-major fp8 matrix are multiplied with: one factor per block.

    The matrix begins at byte ``start`` of its file and has rows of ``columns`` elements; ``block``
    is the (rows, columns) that share a factor. The factors are row-major themselves, of ``dtype``,
    from byte ``offset`` of ``path``.
    """

    start: int
    columns: int
    block: tuple[int, int]
    path: str
    offset: int
    dtype: DType


class Region(NamedTuple):
    """A strided block of elements in a file.

    ``offset`` is the byte position of element ``[0, ..., 0]``; ``strides`` are in elements. Where
    there are ``scales``, offset and strides also say where in their matrix each element is.
    ``computed``: the file is not one on disk but this matrix, row-major in its ``dtype``, and
    ``path`` is where its base begins.
    """

    path: str
    offset: int
    strides: Shape
    scales: Scales | None = None
    computed: LowRank | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor and the region that holds its elements (region shape = box sizes)."""

    box: Box
    region: Region


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor of ``shape`` and ``dtype`` whose elements are in ``chunks``.

    The chunks tile the shape exactly; their elements have ``source_dtype`` on disk and are cast
    to ``dtype`` when read, after multiplication with their scales if :attr:`is_scaled`.
    """

    shape: Shape
    dtype: DType
    source_dtype: DType
    chunks: tuple[Chunk, ...]
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _reach: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        chunks = tuple(sorted(self.chunks, key=lambda chunk: chunk.box.offsets))
        object.__setattr__(self, "chunks", chunks)
        object.__setattr__(self, "_starts", tuple(c.box.offsets[0] for c in chunks if self.shape))
        reach = max((c.box.sizes[0] for c in chunks if self.shape), default=0)
        object.__setattr__(self, "_reach", reach)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes, in ``dtype``."""
        return self.numel * self.dtype.itemsize

    @property
    def is_scaled(self) -> bool:
        """Whether this is fp8 that is multiplied with scales when read: each chunk has some."""
        return self.source_dtype == FLOAT8 and self.dtype in CASTABLE

    @property
    def is_computed(self) -> bool:
        """Whether elements are computed when read, and rounded to ``dtype`` once."""
        return self.is_scaled or any(chunk.region.computed for chunk in self.chunks)

    def chunks_in(self, box: Box) -> Iterator[tuple[Chunk, Box]]:
        """The chunks that meet ``box``, each with the common block, by ascending offsets."""
        first, last = 0, len(self.chunks)
        if self.shape:
            # Chunks are sorted by their first offset: no chunk further back than the longest one
            # reaches can touch the box, so tensors of thousands of chunks are not scanned.
            first = bisect_left(self._starts, box.offsets[0] - self._reach + 1)
            last = bisect_left(self._starts, box.offsets[0] + box.sizes[0])
        for chunk in self.chunks[first:last]:
            common = intersect(chunk.box, box)
            if common is not None:
                yield chunk, common

    def narrow(self, dim: int, start: int, length: int) -> LazyTensor:
        """Elements ``[start, start + length)`` of dimension ``dim``; ValueError out of bounds."""
        dim = self._dim(dim)
        if not 0 <= start <= start + length <= self.shape[dim]:
            raise ValueError(f"narrow {start}+{length} of dimension {dim} of shape {self.shape}")
        sizes = _put(self.shape, dim, length)
        window = Box(_put((0,) * len(self.shape), dim, start), sizes)
        chunks = []
        for chunk, common in self.chunks_in(window):
            offsets = _put(common.offsets, dim, common.offsets[dim] - start)
            region = subregion(chunk, common, self.source_dtype.itemsize)
            chunks.append(Chunk(Box(offsets, common.sizes), region))
        return replace(self, shape=sizes, chunks=tuple(chunks))

    def select(self, dim: int, index: int) -> LazyTensor:
        """The slice at ``index`` of dimension ``dim``, without that dimension."""
        dim = self._dim(dim)
        return self.narrow(dim, index, 1)._map_dims([d for d in range(len(self.shape)) if d != dim])

    def transpose(self, dim0: int, dim1: int) -> LazyTensor:
        """Dimensions ``dim0`` and ``dim1`` exchanged."""
        order = list(range(len(self.shape)))
        dim0, dim1 = self._dim(dim0), self._dim(dim1)
        order[dim0], order[dim1] = order[dim1], order[dim0]
        return self._map_dims(order)

    def unsqueeze(self, dim: int) -> LazyTensor:
        """A new dimension of size 1 at ``dim`` (0 to the number of dimensions)."""
        if not 0 <= dim <= len(self.shape):
            raise ValueError(f"a new dimension {dim} of shape {self.shape}")
        chunks = tuple(
            Chunk(
                Box(_insert(c.box.offsets, dim, 0), _insert(c.box.sizes, dim, 1)),
                c.region._replace(strides=_insert(c.region.strides, dim, 0)),
            )
            for c in self.chunks
        )
        return replace(self, shape=_insert(self.shape, dim, 1), chunks=chunks)

    def to(self, dtype: DType) -> LazyTensor:
        """The tensor cast to ``dtype`` when read.

        ValueError unless both are floating-point types of 16 bits or more (integers are not
        weights, fp8 needs its scales), and where another cast is pending. What is computed is
        only rounded when read, so another ``dtype`` just takes the place of the first.
        """
        if dtype == self.dtype:
            return self
        if dtype not in CASTABLE or self.dtype not in CASTABLE:
            raise ValueError(f"no cast from {self.dtype} to {dtype}")
        if self.dtype != self.source_dtype and not self.is_computed:
            raise ValueError(f"already cast from {self.source_dtype} to {self.dtype}")
        return replace(self, dtype=dtype)

    def read(self) -> torch.Tensor:
        """The whole tensor in memory, as torch holds it. OSError where a file cannot be read."""
        import torch

        from ckpt_tool.tensors.blocks import BlockReader, FileTable

        buffer = bytearray(self.nbytes)
        with FileTable() as files:
            if buffer:
                BlockReader(files).read(self, 0, self.numel, memoryview(buffer))
        dtype = getattr(torch, self.dtype.name)
        if not buffer:
            return torch.empty(self.shape, dtype=dtype)
        return torch.frombuffer(buffer, dtype=dtype).reshape(self.shape)

    def _dim(self, dim: int) -> int:
        if not -len(self.shape) <= dim < len(self.shape):
            raise ValueError(f"dimension {dim} of shape {self.shape}")
        return dim % len(self.shape)

    def _map_dims(self, order: Sequence[int]) -> LazyTensor:
        """Dimensions picked in ``order``; left-out ones must have size 1 and offset 0."""

        def pick(values: Shape) -> Shape:
            return tuple(values[d] for d in order)

        chunks = tuple(
            Chunk(
                Box(pick(c.box.offsets), pick(c.box.sizes)),
                c.region._replace(strides=pick(c.region.strides)),
            )
            for c in self.chunks
        )
        return replace(self, shape=pick(self.shape), chunks=chunks)


def cat(tensors: Sequence[LazyTensor], dim: int) -> LazyTensor:
    """Tensors joined along ``dim``; ValueError unless dtypes and the other sizes agree."""
    first = tensors[0]
    dim = first._dim(dim)
    chunks: list[Chunk] = []
    length = 0
    for tensor in tensors:
        same = len(tensor.shape) == len(first.shape)
        same = same and _put(tensor.shape, dim, 0) == _put(first.shape, dim, 0)
        if not same or (tensor.dtype, tensor.source_dtype) != (first.dtype, first.source_dtype):
            raise ValueError(f"cat of {first.shape} {first.dtype} and {tensor.shape}")
        for chunk in tensor.chunks:
            offsets = _put(chunk.box.offsets, dim, chunk.box.offsets[dim] + length)
            chunks.append(Chunk(Box(offsets, chunk.box.sizes), chunk.region))
        length += tensor.shape[dim]
    return replace(first, shape=_put(first.shape, dim, length), chunks=tuple(chunks))


def stack(tensors: Sequence[LazyTensor]) -> LazyTensor:
    """Tensors of one shape as the entries of a new leading dimension."""
    return cat([tensor.unsqueeze(0) for tensor in tensors], 0)


def subregion(chunk: Chunk, common: Box, itemsize: int) -> Region:
    """The region of ``common``, a block inside the chunk's box; ``itemsize`` in bytes on disk."""
    region = chunk.region
    skipped = dot(common.offsets, region.strides) - dot(chunk.box.offsets, region.strides)
    return region._replace(offset=region.offset + skipped * itemsize)


def _put(values: Shape, dim: int, value: int) -> Shape:
    return (*values[:dim], value, *values[dim + 1 :])


def _insert(values: Shape, dim: int, value: int) -> Shape:
    return (*values[:dim], value, *values[dim:])
