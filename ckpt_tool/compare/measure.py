"""Measuring how far tensors are apart, block by block, in a few threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ckpt_tool.common.threads import Threads
from ckpt_tool.compare.stats import Stats, Tolerance
from ckpt_tool.compare.values import Values, decode_values, is_ordered, order_bits, view_bits
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.equality import Label, Pair
from ckpt_tool.tensors.lazy import LazyTensor

_ELEMENTS = 1 << 16  # per step: a dozen float64 arrays of it fit the second-level cache
_SPAN = 1 << 22  # elements per task

_EXPONENT_BIAS = 1023


def measure(
    pairs: Iterable[Pair[Label]],
    jobs: int,
    tolerance: Tolerance,
    advance: Callable[[int], None],
) -> dict[Label, Stats]:
    """The differences of every pair; its tensors have one shape, their dtypes may differ.

    Where a side is cast, elements that are NaN on both are equal: casts do not keep their bits.
    ``advance`` is told the bytes of the left side. OSError and FormatError where a file cannot be
    read.
    """
    found: dict[Label, Stats] = {}
    hashes: dict[Label, list[Any]] = {}
    local = threading.local()
    tasks = list(_tasks(pairs))
    with FileTable() as files, Threads(jobs, tasks=len(tasks)) as pool:

        def work(task: tuple[Pair[Label], int, int]) -> tuple[Label, list[Stats]]:
            if not hasattr(local, "readers"):
                local.readers = (BlockReader(files), BlockReader(files))
            pair, start, stop = task
            with np.errstate(over="ignore", invalid="ignore"):  # float64 may overflow
                parts = [
                    _measure_block(local.readers, pair, (at, min(at + _ELEMENTS, stop)), tolerance)
                    for at in range(start, stop, _ELEMENTS)
                ]
            advance((stop - start) * pair.left.dtype.itemsize)
            return pair.label, parts

        for label, parts in pool.map(work, tasks):
            whole = found.setdefault(label, Stats())
            sides = hashes.setdefault(label, [xxhash.xxh3_128(), xxhash.xxh3_128()])
            for part in parts:
                whole.add(part)
                for side, digest in zip(sides, part.digests, strict=True):
                    side.update(digest.encode())
    for label, sides in hashes.items():
        found[label].digests = (sides[0].hexdigest(), sides[1].hexdigest())
    return found


def _tasks(pairs: Iterable[Pair[Label]]) -> Iterator[tuple[Pair[Label], int, int]]:
    for pair in pairs:
        for start in range(0, max(pair.left.numel, 1), _SPAN):
            yield pair, start, min(start + _SPAN, pair.left.numel)


def _measure_block(
    readers: tuple[BlockReader, BlockReader],
    pair: Pair[Label],
    span: tuple[int, int],
    tolerance: Tolerance,
) -> Stats:
    start, stop = span
    left, right = (
        _read(reader, tensor, start, stop)
        for reader, tensor in zip(readers, (pair.left, pair.right), strict=True)
    )
    a, b = _values(pair, left, right)
    same = pair.left.dtype == pair.right.dtype
    if not same:
        unequal = (a != b) & ~(np.isnan(a) & np.isnan(b))
        different = unequal.reshape(stop - start, -1).any(axis=1)
    else:
        different = view_bits(left, pair.left.dtype) != view_bits(right, pair.right.dtype)
        if _is_cast(pair.left) or _is_cast(pair.right):  # casts are of real numbers
            different &= ~(np.isnan(a) & np.isnan(b))
    part = Stats(
        num_elements=stop - start,
        num_different=int(np.count_nonzero(different)),
        digests=(xxhash.xxh3_128_hexdigest(left), xxhash.xxh3_128_hexdigest(right)),
    )
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        part.num_nan = (int(np.isnan(a).sum()), int(np.isnan(b).sum()))
        part.num_inf = (int(np.isinf(a).sum()), int(np.isinf(b).sum()))
        unlike = ~finite.reshape(len(different), -1).all(axis=1)
        part.num_unlike = int(np.count_nonzero(different & unlike))
    if part.num_different:
        _note_first(part, a, b, different, start)
    if not finite.all():
        a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    distance = np.abs(a - b)
    part.squares = (float(a @ a), float(b @ b), float(distance @ distance))
    part.product = float(a @ b)
    size = np.abs(b)
    part.peaks = (float(np.abs(a).max()), float(size.max()))
    if not part.num_different:
        return part
    outside = different
    if not tolerance.exact and _is_inexact(pair.left.dtype):
        far = (distance > tolerance.atol + tolerance.rtol * size) | ~finite
        outside = different & far.reshape(len(different), -1).any(axis=1)
    part.num_outside = int(np.count_nonzero(outside))
    _add_distances(part, distance, size)
    if same and is_ordered(pair.left.dtype):
        part.max_ulp = _largest_ulp(left, right, pair.left.dtype, finite)
    return part


def _values(pair: Pair[Label], left: memoryview, right: memoryview) -> tuple[Values, Values]:
    """The elements of both sides; a real side beside a complex one as complex."""
    a, b = decode_values(left, pair.left.dtype), decode_values(right, pair.right.dtype)
    if len(a) < len(b):
        return np.column_stack((a, np.zeros_like(a))).ravel(), b
    if len(b) < len(a):
        return a, np.column_stack((b, np.zeros_like(b))).ravel()
    return a, b


def _note_first(
    part: Stats, a: Values, b: Values, different: NDArray[np.bool_], start: int
) -> None:
    first = int(np.argmax(different))
    parts = len(a) // len(different)
    at = first * parts
    at += int(np.argmax(a[at : at + parts] != b[at : at + parts]))
    part.first_index, part.first_values = start + first, (float(a[at]), float(b[at]))


def _is_inexact(dtype: DType) -> bool:
    """Whether closeness means anything: integers are equal or not."""
    return dtype.is_float or dtype.name == "complex64"


def _add_distances(part: Stats, distance: Values, size: Values) -> None:
    """What follows from ``|a - b|`` and ``|b|`` alone."""
    part.max_abs = float(distance.max())
    part.sum_abs = float(distance.sum())
    part.max_rel = float(np.divide(distance, size, out=np.zeros_like(size), where=size > 0).max())
    exponents = np.bincount((distance.view(np.uint64) >> np.uint64(52)).astype(np.int64))
    part.exponents = {
        int(at) - _EXPONENT_BIAS: int(exponents[at]) for at in np.flatnonzero(exponents) if at
    }


def _largest_ulp(
    left: memoryview, right: memoryview, dtype: DType, finite: NDArray[np.bool_]
) -> int:
    a, b = (order_bits(view_bits(raw, dtype), dtype)[finite] for raw in (left, right))
    # Their distance may not fit an int64; unsigned, it is right modulo 2**64.
    above, below = np.maximum(a, b).view(np.uint64), np.minimum(a, b).view(np.uint64)
    return int((above - below).max(initial=0))


def _read(reader: BlockReader, tensor: LazyTensor, start: int, stop: int) -> memoryview:
    raw = memoryview(bytearray((stop - start) * tensor.dtype.itemsize))
    reader.read(tensor, start, stop, raw)
    return raw


def _is_cast(tensor: LazyTensor) -> bool:
    return tensor.dtype != tensor.origin
