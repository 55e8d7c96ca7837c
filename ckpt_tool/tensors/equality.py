"""Bit-equality of lazy tensors, block by block, in a few threads."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ckpt_tool.common.remote.files import are_there
from ckpt_tool.common.threads import Threads
from ckpt_tool.tensors.ahead import Read, flow_ahead, list_reads
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.sweep import Sweep, find_step

_LIBC = ctypes.CDLL(None)
_STEP = 1 << 20  # bytes of each side per comparison: both stay in the second-level cache
_STEPS = 64  # per task: few enough that one large tensor keeps every thread busy

Label = TypeVar("Label", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Pair(Generic[Label]):
    """Two tensors of one shape and dtype that should be equal."""

    label: Label
    left: LazyTensor
    right: LazyTensor


def locate_differences(
    pairs: Sequence[Pair[Label]], jobs: int, advance: Callable[[int], None]
) -> dict[Label, int]:
    """The labels of pairs that differ, each with the first differing element (row-major).

    ``advance`` is told the bytes of one side of which that is known. OSError and FormatError where
    a file cannot be read.
    """
    found: dict[Label, int] = {}
    local = threading.local()
    count = count_tasks(pairs, _find_span)
    with FileTable(passes=True) as files, Threads(jobs, tasks=count) as pool:

        def compare(task: tuple[Pair[Label], int, int]) -> tuple[Label, int | None]:
            if not hasattr(local, "sides"):
                local.sides = (BlockReader(files), BlockReader(files))
                local.buffers = (memoryview(bytearray(_STEP)), memoryview(bytearray(_STEP)))
            pair, start, stop = task
            return pair.label, _compare(pair, (start, stop), local, advance)

        tasks = cut_tasks(pairs, _find_span)
        for label, index in flow_ahead(pool, compare, tasks, list_pair_reads):
            if index is not None:
                found[label] = min(index, found.get(label, index))
    return found


def are_equal(left: LazyTensor, right: LazyTensor, jobs: int) -> bool:
    """Whether two tensors have one shape, dtype and bits; raises what reading them does."""
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    return not locate_differences([Pair("", left, right)], jobs, lambda _: None)


def cut_tasks(
    pairs: Sequence[Pair[Label]], find_span: Callable[[Pair[Label]], int]
) -> Iterator[tuple[Pair[Label], int, int]]:
    """Ranges of elements, from one to before another, that threads take one by one.

    ``find_span``: how many elements of a pair are a task.
    """
    for pair in pairs:
        span = find_span(pair)
        for start in range(0, pair.left.numel, span):
            yield pair, start, min(start + span, pair.left.numel)


def count_tasks(pairs: Sequence[Pair[Label]], find_span: Callable[[Pair[Label]], int]) -> int:
    """How many :func:`cut_tasks` gives."""
    return sum(-(-pair.left.numel // find_span(pair)) for pair in pairs)


def list_pair_reads(task: tuple[Pair[Label], int, int]) -> Iterator[Read]:
    """What a task reads of both sides."""
    pair, start, stop = task
    for side in (pair.left, pair.right):
        yield from list_reads(side, start, stop)


def count_steps(steps: int) -> int:
    """Of a task: one where files are remote, as all that it reads is on its way before."""
    return 1 if are_there() else steps


def _find_span(pair: Pair[Label]) -> int:
    """The elements of a task."""
    return count_steps(_STEPS) * find_step(pair.left.shape, _STEP // pair.left.dtype.itemsize)


def _compare(
    pair: Pair[Label], span: tuple[int, int], local: threading.local, advance: Callable[[int], None]
) -> int | None:
    size = pair.left.dtype.itemsize
    step = find_step(pair.left.shape, _STEP // size)
    sweeps = [
        Sweep(reader, tensor, span, step)
        for reader, tensor in zip(local.sides, (pair.left, pair.right), strict=True)
    ]
    for start in range(*span, step):
        stop = min(start + step, span[1])
        blocks = [buffer[: (stop - start) * size] for buffer in local.buffers]
        for sweep, block in zip(sweeps, blocks, strict=True):
            sweep.read(start, stop, block)
        at = _first_difference(*blocks)
        if at is not None:
            advance((span[1] - start) * size)  # nobody reads the rest
            return start + at // size
        advance(len(blocks[0]))
    return None


def _first_difference(left: memoryview, right: memoryview) -> int | None:
    """The position of the first byte that differs.

    ``memcmp`` through ctypes is as fast as memory, and releases the interpreter lock.
    """
    sides = (ctypes.byref(ctypes.c_char.from_buffer(side)) for side in (left, right))
    if _LIBC.memcmp(*sides, ctypes.c_size_t(len(left))) == 0:
        return None
    import numpy as np

    return int(np.argmax(np.frombuffer(left, np.uint8) != np.frombuffer(right, np.uint8)))
