"""Parts of files that several threads want at the same time: they read them together, once.

Who writes a matrix by its columns wants some of all of its rows, and so does the thread beside it.
Were each to read by itself, all of it would be read, and held, as often as there are threads.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from math import prod
from threading import Condition, get_ident
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

#: Bytes of a strip, unless somebody needs more in one.
STRIP_BYTES = 34 << 20
#: Bytes of strips that are kept when nobody uses them, and that are used at the same time.
_MOST, _MOST_USED = 2 * STRIP_BYTES, 3 * STRIP_BYTES
#: Bytes that a thread reads at a time.
_PART = 1 << 20

#: Puts rows ``[first, last)`` of a strip into memory.
Read = Callable[[int, int, memoryview], None]


class Strips:
    """Matrices in memory by keys, which threads fill together; the oldest make room for others.

    Who would be one too many waits until another is not used any more, unless it uses one itself:
    what the strip that it reads is made of may be turned, too.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._strips: dict[Hashable, _Strip] = {}  # the one used last is the last
        self._users: Counter[int] = Counter()  # threads, and how many strips each uses

    @contextmanager
    def take(
        self, key: Hashable, shape: tuple[int, int], kind: DTypeLike, read: Read
    ) -> Iterator[NDArray[Any]]:
        """The matrix ``key``, filled by ``read`` where it is not there; its caller's for a while.

        Raises what ``read`` does.
        """
        is_there = False
        while not is_there:
            strip = self._enter(key, shape, np.dtype(kind))
            try:
                is_there = strip.fill(read, self._changed)  # or another thread could not read it
                if is_there:
                    yield strip.matrix
            finally:
                self._leave(strip)

    def _enter(self, key: Hashable, shape: tuple[int, int], kind: np.dtype[Any]) -> _Strip:
        size, thread = prod(shape) * kind.itemsize, get_ident()
        with self._changed:
            if not self._users[thread]:
                self._changed.wait_for(lambda: key in self._strips or self._may_use(size))
            strip = self._strips.pop(key, None)
            if strip is None or strip.is_broken:
                strip = _Strip(self._make_room(size), shape, kind)
            self._strips[key] = strip
            strip.users += 1
            self._users[thread] += 1
            return strip

    def _leave(self, strip: _Strip) -> None:
        with self._changed:
            strip.users -= 1
            self._users[get_ident()] -= 1
            self._changed.notify_all()

    def _may_use(self, size: int) -> bool:
        used = [len(strip.memory) for strip in self._strips.values() if strip.users]
        return not used or sum(used) + size <= _MOST_USED

    def _make_room(self, size: int) -> NDArray[np.uint8]:
        """Memory for a strip: that of one that nobody uses, where new memory would be too much."""
        found = None
        held = sum(len(strip.memory) for strip in self._strips.values())
        for key in [key for key, strip in self._strips.items() if not strip.users]:
            if held + (size if found is None else 0) <= _MOST:
                break
            memory = self._strips.pop(key).memory
            if found is None and len(memory) >= size:
                found = memory
            else:
                held -= len(memory)
        return _allocate(size) if found is None else found


def _allocate(size: int) -> NDArray[np.uint8]:
    """Memory that goes back to the system when it is let go.

    The C library keeps what a thread frees for that thread, also of this size: with 16 of them five
    strips more were held than there were.
    """
    memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, size)


class _Strip:
    """A matrix over ``memory``, which has room for it, and which of its rows are there."""

    def __init__(
        self, memory: NDArray[np.uint8], shape: tuple[int, int], kind: np.dtype[Any]
    ) -> None:
        self.memory, self.users, self.is_broken = memory, 0, False
        rows, columns = shape
        self.matrix: NDArray[Any] = (
            memory[: rows * columns * kind.itemsize].view(kind).reshape(shape)
        )
        self._step = max(1, _PART // max(1, columns * kind.itemsize))
        self._begun = self._done = 0

    def fill(self, read: Read, changed: Condition) -> bool:
        """Read rows that nobody has begun; whether all are there in the end."""
        rows = len(self.matrix)
        while self._begun < rows and not self.is_broken:
            with changed:
                first = min(self._begun, rows)
                last = self._begun = min(first + self._step, rows)
            try:
                if first < last:
                    read(first, last, self.matrix[first:last].data.cast("B"))
            except BaseException:
                with changed:
                    self.is_broken = True
                    changed.notify_all()
                raise
            with changed:
                self._done += last - first
                if self._done == rows:
                    changed.notify_all()
        with changed:
            changed.wait_for(lambda: self._done == rows or self.is_broken)
            return self._done == rows
