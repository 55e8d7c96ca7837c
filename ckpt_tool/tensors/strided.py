"""Strided blocks of elements in memory and in files: views, and the runs of bytes in them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from ckpt_tool.tensors.geometry import Shape, dot

if TYPE_CHECKING:
    from numpy.typing import NDArray


def view_strided(raw: memoryview, sizes: Shape, strides: Shape, itemsize: int) -> NDArray[Any]:
    """A strided view of ``raw`` as unsigned integers of ``itemsize`` bytes; strides in elements."""
    import numpy as np

    steps = tuple(stride * itemsize for stride in strides)
    return np.ndarray(sizes, _make_kind(itemsize), raw, 0, steps)


@cache
def _make_kind(itemsize: int) -> Any:
    """Numpy's word for it: finding that takes longer than the view."""
    import numpy as np

    return np.dtype(f"<u{itemsize}")


def measure_span(sizes: Shape, strides: Shape) -> int:
    """Elements from the first to the last of a strided block, both included."""
    return dot(tuple(size - 1 for size in sizes), strides) + 1


def fills_span(sizes: Shape, strides: Shape) -> bool:
    """Whether so much of a block's span is in the block that it is read whole, with the gaps.

    A call for each of its runs would take longer.
    """
    return measure_span(sizes, strides) <= 2 * prod(sizes)


def order_dims(strides: Shape) -> list[int]:
    """The dimensions of a block in the order of its file: longest strides first."""
    return sorted(range(len(strides)), key=lambda dim: -strides[dim])


def cut_runs(sizes: Shape, strides: Shape, itemsize: int) -> tuple[int, Iterator[int]]:
    """How long the runs of bytes of a block are, and where each begins, from its first element on.

    They are in row-major order, so they ascend where the longest strides come first.
    """
    run, starts = cut_common_runs(sizes, strides, strides, itemsize)
    return run, (start for start, _ in starts)


def cut_common_runs(
    sizes: Shape, here: Shape, there: Shape, itemsize: int
) -> tuple[int, Iterator[tuple[int, int]]]:
    """The same of what are runs by both strides, and where each begins by these."""
    run, outer = 1, len(sizes)
    while outer and (here[outer - 1] == there[outer - 1] == run or sizes[outer - 1] == 1):
        run *= sizes[outer - 1]
        outer -= 1
    longer = [dim for dim in range(outer) if sizes[dim] != 1]
    counts, first, second = (tuple(each[dim] for dim in longer) for each in (sizes, here, there))
    if len(longer) == 1:  # thousands of rows: short of what reading them takes
        steps = first[0] * itemsize, second[0] * itemsize
        return run * itemsize, ((n * steps[0], n * steps[1]) for n in range(counts[0]))
    return run * itemsize, (
        (dot(index, first) * itemsize, dot(index, second) * itemsize)
        for index in product(*map(range, counts))
    )
