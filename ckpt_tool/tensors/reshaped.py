"""A tensor in another shape: the same elements in the same row-major order.

To split a dimension is geometry. To join dimensions is none where their elements do not lie back to
back (after a transpose); but the row-major order does not change by it, so that the result is read
as the tensor itself is, from the same element on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from ckpt_tool.tensors.chunks import Chunk, Filler, Reader, Region
from ckpt_tool.tensors.geometry import (
    Box,
    Shape,
    cut_linear,
    dot,
    list_runs,
    make_strides,
    unravel,
)
from ckpt_tool.tensors.lazy import LazyTensor, hold
from ckpt_tool.tensors.moved import Moved, MovingFiller


def reshape(tensor: LazyTensor, sizes: Sequence[int]) -> LazyTensor:
    """``tensor`` in the shape ``sizes``, of which one may be -1, as ``torch.reshape``.

    Reads nothing. ValueError where there are more elements in one shape than in the other.
    """
    shape = _complete(tensor, sizes)
    if shape == tensor.shape:
        return tensor
    if not tensor.chunks:
        return replace(tensor, shape=shape)
    groups = _split_dims(tensor.shape, shape)
    return _join(tensor, shape) if groups is None else _split(tensor, groups)


def list_paths(tensor: LazyTensor) -> set[str]:
    """The files of its elements; of what is computed that in which its first operand begins."""
    found: set[str] = set()
    for chunk in tensor.chunks:
        array = chunk.region.computed
        found |= list_paths(array.tensor) if isinstance(array, Reshaped) else {chunk.region.path}
    return found


def is_reshaped(tensor: LazyTensor) -> bool:
    """Whether dimensions of it were joined whose elements do not lie back to back."""
    return any(isinstance(chunk.region.computed, Reshaped) for chunk in tensor.chunks)


def find_path(tensor: LazyTensor, place: Shape) -> str:
    """The file of the element at ``place``, as :func:`list_paths` has it; empty if none."""
    found = find_element(tensor, place)
    return "" if found is None else found.path


def find_element(tensor: LazyTensor, place: Shape) -> Region | None:
    """Where the element at ``place`` lies: equal for one element of a file, whatever its way here.

    Its strides are empty. None where there are no elements.
    """
    for chunk, _ in tensor.chunks_in(Box(place, (1,) * len(place))):
        region, array = chunk.region, chunk.region.computed
        skipped = dot(place, region.strides) - dot(chunk.box.offsets, region.strides)
        at = region.offset + skipped * tensor.source_dtype.itemsize
        if not isinstance(array, Reshaped):
            return Region(region.path, at, (), array)
        inner = array.tensor
        return find_element(inner, unravel(at // array.dtype.itemsize, inner.shape))
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Reshaped(Moved):
    """An array of ``shape`` with the elements of ``tensor``, which are not cast."""

    shape: Shape

    @property
    def recipe(self) -> str:
        """Its other shape."""
        return f"reshaped to {self.shape}"

    def open(self, reader: Reader) -> Filler:
        """What reads boxes; reads nothing yet."""
        return _RunFiller(self, reader)


class _RunFiller(MovingFiller):
    """Reads boxes run by run of their row-major order."""

    moved: Reshaped

    def fill(self, box: Box, out: memoryview) -> None:
        """Put the elements of ``box``, row-major, into ``out``."""
        tensor, at, size = self.moved.tensor, 0, self.moved.dtype.itemsize
        for start, length in list_runs(self.moved.shape, box):
            part = out[at * size : (at + length) * size]
            self.reader.read(tensor, start, start + length, part)
            at += length


def _complete(tensor: LazyTensor, sizes: Sequence[int]) -> Shape:
    """The sizes with the one that is left open."""
    known = prod(size for size in sizes if size != -1)
    rest = tensor.numel // known if known else 0
    shape = tuple(rest if size == -1 else size for size in sizes)
    if list(sizes).count(-1) > 1 or min(shape, default=0) < 0 or prod(shape) != tensor.numel:
        raise ValueError(f"shape {tuple(sizes)} for the elements of shape {tensor.shape}")
    return shape


def _split_dims(shape: Shape, wanted: Shape) -> list[Shape] | None:
    """What each dimension of ``shape`` becomes in ``wanted``; None where some are joined."""
    groups: list[Shape] = []
    at = 0
    for size in shape:
        group: Shape = ()
        while at < len(wanted) and (not group or prod(group) < size):
            group, at = (*group, wanted[at]), at + 1
        if prod(group) != size or not group:
            return None
        groups.append(group)
    rest = wanted[at:]
    if not groups or prod(rest) != 1:
        return None
    return [*groups[:-1], groups[-1] + rest]


def _split(tensor: LazyTensor, groups: Sequence[Shape]) -> LazyTensor:
    size = tensor.source_dtype.itemsize
    chunks = tuple(part for chunk in tensor.chunks for part in _split_chunk(chunk, groups, size))
    return replace(tensor, shape=tuple(n for group in groups for n in group), chunks=chunks)


def _split_chunk(chunk: Chunk, groups: Sequence[Shape], itemsize: int) -> Iterator[Chunk]:
    """The chunk's boxes where each dimension is several: a span that ends amid them is cut."""
    region, steps = chunk.region, [make_strides(group) for group in groups]
    strides = tuple(
        stride * step for stride, inner in zip(region.strides, steps, strict=True) for step in inner
    )
    spans = [
        list(cut_linear(group, start, start + size))
        for group, start, size in zip(groups, *chunk.box, strict=True)
    ]
    for boxes in product(*spans):
        starts = [dot(box.offsets, step) for box, step in zip(boxes, steps, strict=True)]
        moved = [at - start for at, start in zip(starts, chunk.box.offsets, strict=True)]
        offset = region.offset + dot(tuple(moved), region.strides) * itemsize
        box = Box(
            tuple(at for box in boxes for at in box.offsets),
            tuple(size for box in boxes for size in box.sizes),
        )
        yield Chunk(box, region._replace(offset=offset, strides=strides))


def _join(tensor: LazyTensor, shape: Shape) -> LazyTensor:
    return hold(Reshaped(tensor.uncast, shape), tensor.dtype, tensor)
