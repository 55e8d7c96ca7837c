"""The memory that fetched bytes of all remote files have, and the threads that fetch them."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Protocol, TypeVar

from ckpt_tool.common.errors import StoreError
from ckpt_tool.common.threads import start

T = TypeVar("T")

#: Of all windows together; and of those that were announced and wait to be read.
_BUDGET, _AHEAD = 112 << 20, 64 << 20
_MOST_AHEAD = 4096
#: Requests that are under way at a time.
_THREADS = 32


class Window:
    """Bytes ``[start, stop)`` of a file, fetched or on their way; ``left``: not read yet."""

    __slots__ = ("content", "is_expected", "left", "start", "stop")

    def __init__(self, start: int, stop: int, *, is_expected: bool) -> None:
        self.start = start
        self.stop = stop
        self.is_expected = is_expected
        self.left = stop - start
        self.content: Future[memoryview] = Future()

    @property
    def size(self) -> int:
        """In bytes."""
        return self.stop - self.start

    def settle(self, content: memoryview | BaseException) -> None:
        """The bytes are there, or why they are not."""
        with suppress(InvalidStateError):  # given up meanwhile
            if isinstance(content, BaseException):
                self.content.set_exception(content)
            else:
                self.content.set_result(content)

    def give_up(self) -> None:
        """Whoever waits for the bytes waits no longer."""
        self.settle(StoreError("interrupted"))


class Holder(Protocol):
    """A file: whose windows the pool holds."""

    def fetch_expected(self, start: int, stop: int) -> Window | None:
        """A new window for bytes that were expected, if there is to be one."""

    def fill(self, window: Window) -> None:
        """Fetch its bytes."""

    def drop(self, window: Window) -> None:
        """It is not held any more."""


class Pool:
    """Counts windows by bytes, lets the one go that was not read for longest, and fills them."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._held: OrderedDict[tuple[int, int], tuple[Holder, Window]] = OrderedDict()
        self._bytes = 0
        self._ahead = 0  # bytes that wait to be read
        self._num_ahead = 0
        self._begun: deque[tuple[Holder, Window]] = deque()
        self._queue: deque[tuple[Holder, int, int]] = deque()
        self._threads = self._busy = self._asking = 0
        self._waited_for: set[Window] = set()  # those that are being filled
        self._is_over = False

    def hold(self, holder: Holder, window: Window) -> None:
        """Count a new window, and let the oldest go where there are too many bytes."""
        with self.lock:
            self._held[id(holder), window.start] = holder, window
            self._bytes += window.size
            if window.is_expected:
                self._ahead += window.size
                self._num_ahead += 1
            while self._bytes > _BUDGET and len(self._held) > 1:
                self.forget(*next(iter(self._held.values())))

    def forget(self, holder: Holder, window: Window) -> None:
        """Let go of a window, if it is still held."""
        with self.lock:
            held = self._held.get((id(holder), window.start))
            if held is None or held[1] is not window:
                return
            del self._held[id(holder), window.start]
            holder.drop(window)
            self._bytes -= window.size
            self._see(window)

    def touch(self, holder: Holder, window: Window) -> None:
        """A window is being read."""
        with self.lock:
            if (id(holder), window.start) in self._held:
                self._held.move_to_end((id(holder), window.start))
            self._see(window)

    def start(self, holder: Holder, window: Window) -> None:
        """Have a window filled by a thread, at once."""
        with self.lock:
            if self._is_over:
                window.give_up()
                return
            self._begun.append((holder, window))
            self._add_thread()

    def call(self, work: Callable[[], T]) -> T:
        """What ``work``, which asks a store, returns or raises; Ctrl-C need not wait for it."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)
            finally:
                with self.lock:
                    self._asking -= 1

        thread = threading.Thread(target=run, name="ckpt-ask")
        with self.lock:
            start(thread)
            self._asking += 1
        return done.result()

    def stop(self) -> None:
        """Nobody wants anything any more: who waits for bytes is told so, and none are fetched."""
        with self.lock:
            self._is_over = True
            self._queue.clear()
            for window in (*self._waited_for, *(window for _, window in self._begun)):
                window.give_up()
            self._begun.clear()

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return self._busy + self._asking > 0

    def queue(self, holder: Holder, first: int, stop: int) -> None:
        """Have bytes fetched by a thread some time, if nobody has read them by then."""
        with self.lock:
            self._queue.append((holder, first, stop))
            self._add_thread()

    def _see(self, window: Window) -> None:
        if window.is_expected:
            window.is_expected = False
            self._ahead -= window.size
            self._num_ahead -= 1
            if self._queue:
                self._add_thread()

    def _add_thread(self) -> None:
        waiting = len(self._begun) + len(self._queue)
        if self._threads < _THREADS and self._threads - self._busy < waiting:
            start(threading.Thread(target=self._work, name="ckpt-fetch"))
            self._threads += 1

    def _work(self) -> None:
        while (task := self._take()) is not None:
            holder, window = task
            try:
                holder.fill(window)
            finally:
                with self.lock:
                    self._busy -= 1
                    self._waited_for.discard(window)

    def _take(self) -> tuple[Holder, Window] | None:
        """What to fill next; None where a thread has nothing to do, and is not counted any more."""
        with self.lock:
            while True:
                if self._begun:
                    return self._count(*self._begun.popleft())
                is_alive = threading.main_thread().is_alive()
                if (
                    not is_alive
                    or not self._queue
                    or self._ahead > _AHEAD
                    or self._num_ahead > _MOST_AHEAD
                ):
                    break
                holder, first, stop = self._queue.popleft()
                window = holder.fetch_expected(first, stop)
                if window is not None:
                    return self._count(holder, window)
            self._threads -= 1
            return None

    def _count(self, holder: Holder, window: Window) -> tuple[Holder, Window]:
        self._busy += 1
        self._waited_for.add(window)
        return holder, window
