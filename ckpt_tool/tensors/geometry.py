"""Boxes in index space: pure functions, no files, no tensors.

A :class:`Box` is a chunk's place in a tensor, as in ``torch.distributed.checkpoint``: ``offsets``
and ``sizes``, both in elements, one entry per dimension.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from math import prod
from operator import mul
from typing import NamedTuple

Shape = tuple[int, ...]

#: Whatever says that a tensor has so many elements is wrong: no files have.
MOST_ELEMENTS = 1 << 60

_SHOWN = 3  # blocks in a message


class Box(NamedTuple):
    """A half-open block ``[offset, offset + size)`` per dimension."""

    offsets: Shape
    sizes: Shape

    @property
    def volume(self) -> int:
        """Number of elements."""
        return prod(self.sizes)

    def __str__(self) -> str:
        spans = (f"{o}:{o + s}" for o, s in zip(self.offsets, self.sizes, strict=True))
        return f"[{', '.join(spans)}]"


class Coverage(NamedTuple):
    """How boxes fail to tile a tensor: blocks nobody holds, and blocks held more than once.

    ``is_tangled``: they cut across each other so often that it was not found out; no writer cuts
    a tensor so. What was found until then is there.
    """

    missing: tuple[Box, ...]
    overlapping: tuple[Box, ...]
    is_tangled: bool = False

    def __bool__(self) -> bool:
        return not self.missing and not self.overlapping and not self.is_tangled


def dot(a: Shape, b: Shape) -> int:
    """The sum of products: the distance of index ``a`` from the start with strides ``b``."""
    return sum(map(mul, a, b))


def make_strides(shape: Sequence[int]) -> Shape:
    """Row-major strides of ``shape``, in elements."""
    strides = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * shape[dim + 1]
    return tuple(strides)


def is_run(sizes: Shape, strides: Shape) -> bool:
    """Whether a strided block lies back to back in row-major order."""
    expected = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def unravel(index: int, shape: Sequence[int]) -> Shape:
    """The place, per dimension, of element ``index`` of the row-major order of ``shape``.

    ``index`` is from 0 to the number of elements, which is not counted as one.
    """
    place = []
    for size in reversed(shape):
        index, here = divmod(index, size)
        place.append(here)
    return tuple(reversed(place))


def find_bounds(shape: Shape, start: int, sizes: Shape, strides: Shape) -> tuple[Box, Shape]:
    """The smallest box with all of a strided block of a row-major array, and its strides therein.

    The block begins at element ``start`` of the array of ``shape``; each of its dimensions runs
    along one of the array's.
    """
    steps, extent, along = make_strides(shape), [1] * len(shape), []
    for size, stride in zip(sizes, strides, strict=True):
        dims = (d for d, step in enumerate(steps) if shape[d] > 1 and stride % step == 0)
        dim = next(dims, None) if size > 1 else None
        by = 0 if dim is None else stride // steps[dim]
        along.append((dim, by))
        if dim is not None:
            extent[dim] += (size - 1) * by
    inner = make_strides(extent)
    found = tuple(0 if dim is None else by * inner[dim] for dim, by in along)
    return Box(unravel(start, shape), tuple(extent)), found


def intersect(a: Box, b: Box) -> Box | None:
    """The common block of two boxes, or None where it is empty."""
    offsets, sizes = [], []
    for a_start, a_size, b_start, b_size in zip(
        a.offsets, a.sizes, b.offsets, b.sizes, strict=True
    ):
        start = a_start if a_start > b_start else b_start
        stop = min(a_start + a_size, b_start + b_size)
        if stop <= start:
            return None
        offsets.append(start)
        sizes.append(stop - start)
    return Box(tuple(offsets), tuple(sizes))


def is_in_bounds(shape: Shape, box: Box) -> bool:
    """Whether ``box`` has the rank of ``shape`` and lies inside it."""
    return len(box.offsets) == len(box.sizes) == len(shape) and all(
        o >= 0 and s >= 0 and o + s <= n
        for o, s, n in zip(box.offsets, box.sizes, shape, strict=True)
    )


def cut_linear(shape: Shape, start: int, stop: int) -> Iterator[Box]:
    """Boxes that make up elements ``[start, stop)`` of the row-major order, in that order.

    Each box is itself consecutive in row-major order, and as large as possible: a range in the
    middle of a matrix gives the end of a row, whole rows, and the beginning of a row.
    """
    inner = make_strides(shape)
    while start < stop:
        left = stop - start
        dim = next(
            (d for d, step in enumerate(inner) if start % step == 0 and step <= left), len(shape)
        )
        offsets = unravel(start, shape)
        if dim == len(shape):  # a 0-d tensor
            yield Box((), ())
            return
        rows = min(left // inner[dim], shape[dim] - offsets[dim])
        yield Box(offsets, (1,) * dim + (rows,) + shape[dim + 1 :])
        start += rows * inner[dim]


def list_runs(shape: Shape, box: Box) -> Iterator[tuple[int, int]]:
    """The runs of the row-major order of ``shape`` that make up ``box``: start and length each."""
    steps, whole = make_strides(shape), len(shape)
    while whole and box.sizes[whole - 1] == shape[whole - 1]:
        whole -= 1
    outer = max(whole - 1, 0)
    length = prod(box.sizes[outer:])
    first = dot(box.offsets, steps)
    for index in product(*map(range, box.sizes[:outer])):
        yield first + dot(index, steps[:outer]), length


def check_coverage(shape: Shape, boxes: Iterable[Box]) -> Coverage:
    """Prove that ``boxes`` tile ``shape`` exactly once, or say where they do not.

    Boxes must be in bounds; empty ones count for nothing. Replicas (equal boxes) are overlaps
    here: callers that allow them pass each box once. The work is linear in the number of boxes.
    """
    held = [box for box in boxes if box.volume]
    if len(held) == 1 and held[0].sizes == shape:
        return Coverage((), ())
    sweep = _Sweep(shape, _MOST_STEPS * (len(held) + 1) * (len(shape) + 1))
    if prod(shape):
        sweep.cut(held, Box((), ()))
    return Coverage(tuple(sweep.missing), tuple(sweep.overlapping), sweep.room < 0)


#: Slabs that boxes may be put into, or that may be empty, per box and dimension. In a grid, whole
#: or with gaps, these are three at most; ragged rows and columns have some more.
_MOST_STEPS = 64


class _Sweep:
    """One proof; ``room``: steps that are left, below 0 where it was given up."""

    def __init__(self, shape: Shape, room: int) -> None:
        self.shape = shape
        self.room = room
        self.missing: list[Box] = []
        self.overlapping: list[Box] = []

    def cut(self, boxes: list[Box], prefix: Box) -> None:
        """Cut dimension ``len(prefix.offsets)`` into slabs; the rest has to be tiled in each."""
        shape, dim = self.shape, len(prefix.offsets)
        if not boxes:
            rest = Box(prefix.offsets + (0,) * (len(shape) - dim), prefix.sizes + shape[dim:])
            self.missing.append(rest)
            return
        if dim == len(shape):
            if len(boxes) > 1:
                self.overlapping.append(prefix)
            return
        for start, stop, held in self._list_slabs(boxes, dim):
            if len(held) == 1 and held[0].sizes[dim + 1 :] == shape[dim + 1 :]:
                continue
            self.cut(held, Box((*prefix.offsets, start), (*prefix.sizes, stop - start)))

    def _list_slabs(self, boxes: list[Box], dim: int) -> Iterator[tuple[int, int, list[Box]]]:
        """The slabs between all cuts of a dimension, each with the boxes that are in it."""
        spans = [(box.offsets[dim], box.offsets[dim] + box.sizes[dim]) for box in boxes]
        cuts = sorted({0, self.shape[dim], *(cut for span in spans for cut in span)})
        slabs: list[list[Box]] = [[] for _ in cuts]
        self.room -= len(cuts)
        for box, (start, stop) in zip(boxes, spans, strict=True):
            first, last = bisect_left(cuts, start), bisect_left(cuts, stop)
            self.room -= last - first
            if self.room < 0:
                return
            for slab in slabs[first:last]:
                slab.append(box)
        for start, stop, held in zip(cuts, cuts[1:], slabs, strict=False):
            if self.room < 0:
                return
            yield start, stop, held


def list_some(boxes: Sequence[Box]) -> str:
    """The first blocks, for people; what follows is ``...``."""
    shown = [str(box) for box in boxes[:_SHOWN]]
    if len(boxes) > _SHOWN:
        shown.append("...")
    return ", ".join(shown)
