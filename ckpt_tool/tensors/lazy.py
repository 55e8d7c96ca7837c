"""Lazy tensors: a shape, a dtype, and where in which files the elements lie.

Operations (``narrow``, ``cat``, ``stack``, ...) are geometry on chunks and read nothing. Bytes
move when :mod:`ckpt_tool.tensors.blocks` is asked for a range of the row-major form, or when
:meth:`LazyTensor.read` is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from ckpt_tool.common.regular import ZEROS
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.chunks import Chunk, Chunked, Computed, Region
from ckpt_tool.tensors.dtypes import CASTABLE, DType
from ckpt_tool.tensors.geometry import Box, Shape, make_strides

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class LazyTensor(Chunked):
    """A tensor whose elements lie in files: ``shape``, ``dtype``, and ``chunks`` that tile it.

    Offsets and sizes are in elements. Elements have ``source_dtype`` on disk, and are cast to
    ``dtype`` when they are read. Operations return new tensors and read nothing; ValueError where
    shapes or dtypes do not fit.

    >>> import tempfile, torch
    >>> from ckpt_tool import open_checkpoint
    >>> folder = tempfile.TemporaryDirectory()
    >>> torch.save({"weight": torch.arange(12.0).reshape(3, 4)}, f"{folder.name}/model.pt")
    >>> weight = open_checkpoint(f"{folder.name}/model.pt")["weight"]
    >>> weight.shape, weight.dtype.name, weight.nbytes
    ((3, 4), 'float32', 48)
    >>> part = weight.narrow(0, 1, 2).transpose(0, 1)  # reads nothing
    >>> part.select(1, 0).read()  # reads one row
    tensor([4., 5., 6., 7.])
    >>> folder.cleanup()
    """

    def narrow(self, dim: int, start: int, length: int) -> LazyTensor:
        """Elements ``[start, start + length)`` of dimension ``dim``; ValueError out of bounds."""
        dim = self._dim(dim)
        if not 0 <= start <= start + length <= self.shape[dim]:
            raise ValueError(f"narrow {start}+{length} of dimension {dim} of shape {self.shape}")
        chunks = []
        for offsets, sizes, region in self._cut(dim, start, start + length):
            chunks.append(Chunk(_box(_put(offsets, dim, offsets[dim] - start), sizes), region))
        return self._with(_put(self.shape, dim, length), chunks)

    def select(self, dim: int, index: int) -> LazyTensor:
        """The slice at ``index`` of dimension ``dim``, without that dimension."""
        dim = self._dim(dim)
        if not 0 <= index < self.shape[dim]:
            raise ValueError(f"select {index} of dimension {dim} of shape {self.shape}")
        chunks = []
        for offsets, sizes, (path, at, strides, computed) in self._cut(dim, index, index + 1):
            box = _box(_drop(offsets, dim), _drop(sizes, dim))
            chunks.append(Chunk(box, Region(path, at, _drop(strides, dim), computed)))
        return self._with(_drop(self.shape, dim), chunks)

    def _cut(self, dim: int, start: int, stop: int) -> Iterator[tuple[Shape, Shape, Region]]:
        """The parts of chunks in ``[start, stop)`` of a dimension: offsets, sizes and region."""
        itemsize = self.source_dtype.itemsize
        for chunk in self.chunks_near(start, stop) if dim == 0 else self.chunks:
            (offsets, sizes), region = chunk.box, chunk.region
            first, size = offsets[dim], sizes[dim]
            low, high = max(first, start), min(first + size, stop)
            if high <= low:
                continue
            if high - low < size:
                path, at, strides, computed = region
                region = Region(
                    path, at + (low - first) * strides[dim] * itemsize, strides, computed
                )
                offsets, sizes = _put(offsets, dim, low), _put(sizes, dim, high - low)
            yield offsets, sizes, region

    def _with(self, shape: Shape, chunks: Sequence[Chunk]) -> LazyTensor:
        return LazyTensor(shape, self.dtype, self.source_dtype, tuple(chunks))

    def transpose(self, dim0: int, dim1: int) -> LazyTensor:
        """Dimensions ``dim0`` and ``dim1`` exchanged."""
        order = list(range(len(self.shape)))
        dim0, dim1 = self._dim(dim0), self._dim(dim1)
        order[dim0], order[dim1] = order[dim1], order[dim0]

        def pick(values: Shape) -> Shape:
            return tuple(values[d] for d in order)

        chunks = [
            Chunk(
                Box(pick(c.box.offsets), pick(c.box.sizes)),
                c.region._replace(strides=pick(c.region.strides)),
            )
            for c in self.chunks
        ]
        return self._with(pick(self.shape), chunks)

    def unsqueeze(self, dim: int) -> LazyTensor:
        """A new dimension of size 1 at ``dim`` (0 to the number of dimensions)."""
        if not 0 <= dim <= len(self.shape):
            raise ValueError(f"a new dimension {dim} of shape {self.shape}")
        return self._with(
            _insert(self.shape, dim, 1), [_lift(chunk, dim, 0) for chunk in self.chunks]
        )

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

    @property
    def uncast(self) -> LazyTensor:
        """The tensor with the elements of its files, or as they are computed: not rounded yet."""
        return replace(self, dtype=self.source_dtype)

    def read(self) -> torch.Tensor:
        """The whole tensor in memory, as torch holds it.

        OSError where a file cannot be read, ValueError where torch has no such dtype.
        """
        import torch

        dtype = getattr(torch, self.dtype.name, None)
        if dtype is None:
            raise ValueError(f"torch {torch.__version__} has no {self.dtype}")
        buffer = bytearray(self.nbytes)
        with FileTable() as files:
            if buffer:
                BlockReader(files).read(self, 0, self.numel, memoryview(buffer))
        if not buffer:
            return torch.empty(self.shape, dtype=dtype)
        return torch.frombuffer(buffer, dtype=dtype).reshape(self.shape)

    def _dim(self, dim: int) -> int:
        if not -len(self.shape) <= dim < len(self.shape):
            raise ValueError(f"dimension {dim} of shape {self.shape}")
        return dim % len(self.shape)


def hold(computed: Computed, dtype: DType, first: Chunked) -> LazyTensor:
    """What is computed, as a tensor of ``dtype``; its file is that of ``first``, an operand."""
    whole = Box((0,) * len(computed.shape), computed.shape)
    region = Region(first.chunks[0].region.path, 0, make_strides(computed.shape), computed)
    return LazyTensor(computed.shape, dtype, computed.dtype, (Chunk(whole, region),))


def make_zeros(shape: Shape, dtype: DType) -> LazyTensor:
    """A tensor of zeros: the system has a file of them."""
    region = Region(ZEROS, 0, make_strides(shape))
    chunk = Chunk(Box((0,) * len(shape), shape), region)
    return LazyTensor(shape, dtype, dtype, (chunk,) if chunk.box.volume else ())


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
            chunks.append(Chunk(_box(offsets, chunk.box.sizes), chunk.region))
        length += tensor.shape[dim]
    return first._with(_put(first.shape, dim, length), chunks)


def stack(tensors: Sequence[LazyTensor]) -> LazyTensor:
    """Tensors of one shape as the entries of a new leading dimension; ValueError as of `cat`."""
    first = tensors[0]
    chunks = []
    for number, tensor in enumerate(tensors):
        if (tensor.shape, tensor.dtype, tensor.source_dtype) != (
            first.shape,
            first.dtype,
            first.source_dtype,
        ):
            raise ValueError(f"stack of {first.shape} {first.dtype} and {tensor.shape}")
        chunks += [_lift(chunk, 0, number) for chunk in tensor.chunks]
    return first._with((len(tensors), *first.shape), chunks)


@lru_cache(maxsize=4096)
def _box(offsets: Shape, sizes: Shape) -> Box:
    return Box(offsets, sizes)


def _lift(chunk: Chunk, dim: int, at: int) -> Chunk:
    """A chunk in one more dimension, of size 1, at ``at`` of it."""
    (offsets, sizes), (path, offset, strides, computed) = chunk.box, chunk.region
    box = _box(_insert(offsets, dim, at), _insert(sizes, dim, 1))
    return Chunk(box, Region(path, offset, _insert(strides, dim, 0), computed))


# Thousands of tensors have the same few shapes: what is equal is one object.
@lru_cache(maxsize=4096)
def _drop(values: Shape, dim: int) -> Shape:
    return (*values[:dim], *values[dim + 1 :])


@lru_cache(maxsize=4096)
def _put(values: Shape, dim: int, value: int) -> Shape:
    return (*values[:dim], value, *values[dim + 1 :])


@lru_cache(maxsize=4096)
def _insert(values: Shape, dim: int, value: int) -> Shape:
    return (*values[:dim], value, *values[dim:])
