"""The memory that fetched bytes of all remote files have, and the threads that fetch them."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from ckpt_tool.common.remote.windows import Holder, Window
from ckpt_tool.common.threads import start

T = TypeVar("T")

#: Bytes of all windows together, for which the library below takes as much again; and of those that
#: were announced and wait to be read.
_BUDGET, _AHEAD = 64 << 20, 40 << 20
_MOST_AHEAD = 4096
#: Requests that are under way at a time: of short ones, as of headers, there are thousands.
_THREADS = 96
#: Seconds for which a thread waits for more to do: to start one costs more than a request.
_IDLE = 0.05

#: By holder and start.
_Held = OrderedDict[tuple[int, int], tuple[Holder, Window]]


class Pool:
    """Counts windows by bytes, lets the one go that was not read for longest, and fills them.

    Those that were announced and that nobody has looked at yet go last.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._seen: _Held = OrderedDict()  # read in part
        self._unseen: _Held = OrderedDict()  # expected
        self._bytes = 0
        self._ahead = 0  # bytes that wait to be read
        self._begun: deque[tuple[Holder, Window]] = deque()
        self._queue: deque[tuple[Holder, int, int]] = deque()
        self._work_is_there = threading.Condition(self.lock)
        self._threads = self._idle = 0
        self._waited_for: set[Window] = set()  # those that are being filled
        self._is_coming = self._is_over = False

    def hold(self, holder: Holder, window: Window) -> None:
        """Count a new window, and let others go where there are too many bytes."""
        key = id(holder), window.start
        with self.lock:
            self._bytes += window.size
            if window.is_expected:
                self._unseen[key] = holder, window
                self._ahead += window.size
            while self._bytes > _BUDGET and (held := self._seen or self._unseen):
                oldest = next(iter(held.values()))
                if oldest[1] is window:
                    break
                self.forget(*oldest)
            if not window.is_expected:
                self._seen[key] = holder, window

    def forget(self, holder: Holder, window: Window) -> None:
        """Let go of a window, if it is still held."""
        key = id(holder), window.start
        with self.lock:
            held = self._unseen if window.is_expected else self._seen
            if key not in held or held[key][1] is not window:
                return
            del held[key]
            holder.drop(window)
            self._bytes -= window.size
            self._count_read(window)

    def touch(self, holder: Holder, window: Window) -> None:
        """A window is being read."""
        key = id(holder), window.start
        with self.lock:
            if key in self._seen:
                self._seen.move_to_end(key)
            elif window.is_expected and key in self._unseen:
                self._seen[key] = self._unseen.pop(key)
            self._count_read(window)

    def start(self, holder: Holder, window: Window) -> None:
        """Have a window filled by a thread, at once; who waits for it is told where none starts."""
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

        start(threading.Thread(target=run, name="ckpt-ask"))
        return done.result()

    def stop(self) -> None:
        """Nobody wants anything any more: who waits for bytes is told so, and none are fetched."""
        with self.lock:
            self._is_over = True
            self._queue.clear()
            for window in (*self._waited_for, *(window for _, window in self._begun)):
                window.give_up()
            self._begun.clear()

    def queue(self, holder: Holder, first: int, stop: int) -> None:
        """Have bytes fetched by a thread some time, if nobody has read them by then."""
        with self.lock:
            if self._is_over:
                return
            self._queue.append((holder, first, stop))
            self._add_thread()

    def withdraw(self, holder: Holder) -> None:
        """Nobody reads any more what of a file is still queued."""
        with self.lock:
            self._queue = deque(task for task in self._queue if task[0] is not holder)

    def _count_read(self, window: Window) -> None:
        if window.is_expected:
            window.is_expected = False
            self._ahead -= window.size
            if self._queue:
                self._add_thread()

    def _add_thread(self) -> None:
        """Have a thread for what is new: one that waits, or another one.

        One at a time comes, and calls the next where there is more to do by then: a server that
        answers at once needs few. Where the system gives no more, those that are there do it all.
        """
        if self._idle:
            self._work_is_there.notify()
        elif not self._is_coming and self._threads < _THREADS:
            try:
                start(threading.Thread(target=self._work, name="ckpt-fetch"))
            except (MemoryError, RuntimeError) as error:
                if not self._threads:
                    self._refuse(error)
                return
            self._is_coming = True
            self._threads += 1

    def _refuse(self, error: Exception) -> None:
        """There is no thread that could fill what is begun: whoever waits for it is told why.

        What is only queued stays so: nobody waits for it, and a thread that comes later takes it.
        """
        while self._begun:
            holder, window = self._begun.popleft()
            window.settle(error)
            self.forget(holder, window)

    def _has_room(self) -> bool:
        """Whether more may be fetched that waits to be read."""
        return self._ahead <= _AHEAD and len(self._unseen) <= _MOST_AHEAD

    def _work(self) -> None:
        with self.lock:
            self._is_coming = False
        while (task := self._take()) is not None:
            holder, window = task
            try:
                holder.fill(window)
            finally:
                with self.lock:
                    self._waited_for.discard(window)

    def _take(self) -> tuple[Holder, Window] | None:
        """What to fill next; None where a thread has nothing to do, and is not counted any more."""
        with self.lock:
            is_woken = True
            while (task := self._choose()) is None:
                if not is_woken:
                    self._threads -= 1
                    return None
                self._idle += 1
                is_woken = self._work_is_there.wait(_IDLE)
                self._idle -= 1
            return self._count(*task)

    def _choose(self) -> tuple[Holder, Window] | None:
        """What to fill next, if there is to be something; the lock is held."""
        if self._begun:
            return self._begun.popleft()
        if not threading.main_thread().is_alive():
            self._queue.clear()
        while self._queue and self._has_room():
            holder, first, stop = self._queue.popleft()
            if (window := holder.fetch_expected(first, stop)) is not None:
                return holder, window
        return None

    def _count(self, holder: Holder, window: Window) -> tuple[Holder, Window]:
        self._waited_for.add(window)
        if self._begun or (self._queue and self._has_room()):
            self._add_thread()
        return holder, window
