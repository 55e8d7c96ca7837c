"""Bit-equality of lazy tensors, block by block, in a few threads."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from ckpt_tool.common.threads import Threads
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.lazy import LazyTensor

_LIBC = ctypes.CDLL(None)
_STEP = 1 << 20  # bytes of each side per comparison: both stay in the second-level cache
_SPAN = 64 << 20  # bytes of each side per task, so that one large tensor keeps every thread busy

Label = TypeVar("Label", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Pair(Generic[Label]):
    """Two tensors of one shape and dtype that should be equal."""

    label: Label
    left: LazyTensor
    right: LazyTensor


def locate_differences(
    pairs: Iterable[Pair[Label]], jobs: int, advance: Callable[[int], None]
) -> dict[Label, int]:
    """The labels of pairs that differ, each with the first differing element (row-major).

    ``advance`` is told the bytes of one side as they are compared. OSError and FormatError where
    a file cannot be read.
    """
    found: dict[Label, int] = {}
    local = threading.local()
    tasks = list(_tasks(pairs))
    with FileTable(passes=True) as files, Threads(jobs, tasks=len(tasks)) as pool:

        def compare(task: tuple[Pair[Label], int, int]) -> tuple[Label, int | None]:
            if not hasattr(local, "sides"):
                local.sides = (BlockReader(files), BlockReader(files))
                local.buffers = (memoryview(bytearray(_STEP)), memoryview(bytearray(_STEP)))
            pair, start, stop = task
            return pair.label, _compare(pair, (start, stop), local, advance)

        for label, index in pool.map(compare, tasks):
            if index is not None:
                found[label] = min(index, found.get(label, index))
    return found


def are_equal(left: LazyTensor, right: LazyTensor, jobs: int) -> bool:
    """Whether two tensors have one shape, dtype and bits; raises what reading them does."""
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    return not locate_differences([Pair("", left, right)], jobs, lambda _: None)


def _tasks(pairs: Iterable[Pair[Label]]) -> Iterator[tuple[Pair[Label], int, int]]:
    for pair in pairs:
        step = _SPAN // pair.left.dtype.itemsize
        for start in range(0, pair.left.numel, step):
            yield pair, start, min(start + step, pair.left.numel)


def _compare(
    pair: Pair[Label], span: tuple[int, int], local: threading.local, advance: Callable[[int], None]
) -> int | None:
    size = pair.left.dtype.itemsize
    step = _STEP // size
    for start in range(span[0], span[1], step):
        stop = min(start + step, span[1])
        blocks = [buffer[: (stop - start) * size] for buffer in local.buffers]
        tensors = (pair.left, pair.right)
        for reader, tensor, block in zip(local.sides, tensors, blocks, strict=True):
            reader.read(tensor, start, stop, block)
        at = _first_difference(*blocks)
        if at is not None:
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
