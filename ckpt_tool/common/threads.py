"""Threads that start, or say that there is no memory for them.

Python's ``Thread.start`` waits for the thread to say that it runs. Where the memory ends between
its stack and its first object, the thread is gone before it can, and the wait has no end.
"""

from __future__ import annotations

import mmap
import resource
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

#: What a thread takes before it runs, far more than once: its stack is counted apart.
_FIRST_OBJECTS = 8 << 20

#: glibc's stack of a thread where the limit of the stack is "unlimited", and more than it.
_STACK = 8 << 20


def start(thread: threading.Thread) -> None:
    """Start ``thread``; MemoryError where it would not get as far as to run."""
    _ask_for_room()
    thread.start()


class Threads(ThreadPoolExecutor):
    """A pool of ``count`` threads that all run before the first has work to take memory for.

    Of ``tasks``, where their number is known, each has a thread at most, and there is one at least.
    MemoryError, and RuntimeError where the system gives no more threads.
    """

    def __init__(self, count: int, name: str = "ckpt", *, tasks: int | None = None) -> None:
        count = count if tasks is None else min(count, max(tasks, 1))
        self._count = count
        super().__init__(count, thread_name_prefix=name)
        begin = threading.Event()
        try:
            for _ in range(count):  # none is idle until all are there, so that each is a new one
                _ask_for_room()
                self.submit(begin.wait)
        except BaseException:
            begin.set()
            self.shutdown()
            raise
        begin.set()

    def flow(
        self, work: Callable[[Item], Result], items: Iterable[Item], ahead: int = 4
    ) -> Iterator[Result]:
        """What ``work`` makes of each item, in their order; few are begun that nobody asked for.

        ``ahead``: so many times as there are threads.

        ``map`` begins all, and keeps something for each of them: terabytes have many. Raises what
        ``work`` raises; what has not begun then never does.
        """
        rest = iter(items)
        begun: deque[Future[Result]] = deque()
        try:
            begun.extend(self.submit(work, item) for item in islice(rest, ahead * self._count))
            while begun:
                yield begun.popleft().result()
                begun.extend(self.submit(work, item) for item in islice(rest, 1))
        finally:
            for future in begun:
                future.cancel()


def _ask_for_room() -> None:
    """MemoryError where a thread's stack and its first objects do not fit."""
    stack = threading.stack_size() or resource.getrlimit(resource.RLIMIT_STACK)[0]
    room = (stack if stack > 0 else _STACK) + _FIRST_OBJECTS  # RLIM_INFINITY is -1
    try:
        mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise MemoryError(f"no memory for a thread: {room:,} bytes") from error
