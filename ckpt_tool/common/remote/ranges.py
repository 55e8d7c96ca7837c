"""Ranges of bytes of remote files: few requests, many at a time, no more memory than is set.

A request takes as long as it takes a megabyte to arrive. So short reads get a window of bytes
behind them, which grows while reads follow each other; what will be read soon is fetched by threads
while other things go on; and a long read goes straight where it is wanted.
"""

from __future__ import annotations

import threading
from bisect import bisect_right, insort
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future

from ckpt_tool.common.threads import start

#: Asks for bytes ``[start, stop)`` of a file.
Fetch = Callable[[int, int], memoryview]

#: Reads as long as this are fetched as they are, and kept for nobody.
_LONG = 512 << 10
#: The first window, and the largest.
_LEAST, _MOST = 64 << 10, 4 << 20
#: Of all windows together.
_BUDGET = 64 << 20
#: Requests that are under way at a time for what will be read soon.
_THREADS = 32
#: Windows that nobody has read yet; behind them the threads wait.
_AHEAD = 4096
#: A read that begins so little behind another follows it.
_GAP = 64 << 10
_STREAMS = 64  # ends of reads that are remembered, by file


class Window:
    """Bytes ``[start, stop)`` of a file, fetched or on their way."""

    __slots__ = ("content", "is_read", "is_stream", "start", "stop")

    def __init__(self, start: int, stop: int, *, is_stream: bool, is_read: bool) -> None:
        self.start = start
        self.stop = stop
        self.is_stream = is_stream
        self.is_read = is_read
        self.content: Future[memoryview] = Future()

    @property
    def size(self) -> int:
        """In bytes."""
        return self.stop - self.start


class Ranges:
    """The windows of a file of ``size`` bytes, which ``fetch`` reads, in the memory of ``pool``."""

    def __init__(self, size: int, fetch: Fetch, pool: Pool) -> None:
        self.size = size
        self.fetch = fetch
        self._pool = pool
        self._starts: list[int] = []
        self._windows: dict[int, Window] = {}
        self._ends: OrderedDict[int, int] = OrderedDict()  # end of a read: length of its window

    def read(self, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from byte ``offset`` on; how many bytes, fewer only where the file ends.

        Raises what ``fetch`` does.
        """
        stop = min(offset + len(buffer), self.size)
        at = offset
        while at < stop:
            window = self._find(at)
            if window is None and stop - at >= _LONG:
                content, start = self.fetch(at, stop), at
            else:
                window = window or self._open(at, stop)
                content, start = window.content.result(), window.start
            piece = content[at - start : stop - start]
            buffer[at - offset : at - offset + len(piece)] = piece
            at += len(piece)
            if window is not None and window.is_stream and at == window.stop:
                self._pool.forget(self, window)  # who reads on does not come back
        return max(0, at - offset)

    def expect(self, start: int, stop: int) -> None:
        """These bytes will be read soon."""
        start, stop = max(0, start), min(stop, self.size)
        if start < stop:
            self._pool.queue(self, start, stop)

    def take(
        self, start: int, stop: int, *, is_stream: bool = False, is_read: bool = False
    ) -> Window | None:
        """A new window for these bytes, for the caller to fill; None where one begins there."""
        with self._pool.lock:
            if start in self._windows:
                return None
            window = Window(start, stop, is_stream=is_stream, is_read=is_read)
            self._windows[start] = window
            insort(self._starts, start)
            self._pool.hold(self, window)
            return window

    def fill(self, window: Window) -> None:
        """Fetch the bytes of a window; whoever waits for them gets what is raised, too.

        It is not kept then: whoever asks again may have more luck.
        """
        try:
            window.content.set_result(self.fetch(window.start, window.stop))
        except BaseException as error:
            window.content.set_exception(error)
            self._pool.forget(self, window)

    def drop(self, window: Window) -> None:
        """Forget a window; the pool's lock is held."""
        del self._windows[window.start]
        del self._starts[bisect_right(self._starts, window.start) - 1]

    def _find(self, at: int) -> Window | None:
        with self._pool.lock:
            place = bisect_right(self._starts, at)
            if not place:
                return None
            window = self._windows[self._starts[place - 1]]
            if at >= window.stop:
                return None
            is_first = self._pool.touch(self, window)
            self._ends.pop(window.stop, None)
            self._ends[window.stop] = window.size
        if is_first and window.is_stream:
            self._go_on(window)
        return window

    def _go_on(self, window: Window) -> None:
        """A window of a stream is being read: the next one can come."""
        stop = min(window.stop + self._grow(window.size), self.size)
        if window.stop < stop:
            self._pool.queue(self, window.stop, stop, is_stream=True)

    def _open(self, at: int, stop: int) -> Window:
        """The window for a read that no window has the beginning of."""
        with self._pool.lock:
            before = next((end for end in reversed(self._ends) if 0 <= at - end <= _GAP), None)
            length = _LEAST if before is None else self._grow(self._ends.pop(before))
            until = min(max(at + length, stop), self.size)
            after = bisect_right(self._starts, at)
            if after < len(self._starts):
                until = min(until, self._starts[after])
            self._ends[until] = until - at
            while len(self._ends) > _STREAMS:
                self._ends.popitem(last=False)
        window = self.take(at, until, is_stream=before is not None, is_read=True)
        if window is None:  # somebody was faster
            return self._find(at) or self._open(at, stop)
        if window.is_stream:
            self._go_on(window)
        self.fill(window)
        return window

    def _grow(self, length: int) -> int:
        return max(_LEAST, min(2 * length, _MOST, self._pool.share()))


class Pool:
    """The memory that windows of all files have, and the threads that fetch what is expected."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._held: OrderedDict[tuple[int, int], tuple[Ranges, Window]] = OrderedDict()
        self._bytes = 0
        self._num_unread = 0
        self._unread = 0  # bytes
        self._files = Counter[int]()  # how many windows each has
        self._queue: deque[tuple[Ranges, int, int, bool]] = deque()
        self._threads = 0

    def hold(self, ranges: Ranges, window: Window) -> None:
        """Count a new window, and let the oldest go where there are too many bytes."""
        with self.lock:
            self._held[id(ranges), window.start] = ranges, window
            self._files[id(ranges)] += 1
            self._bytes += window.size
            if not window.is_read:
                self._num_unread += 1
                self._unread += window.size
            while self._bytes > _BUDGET and len(self._held) > 1:
                self.forget(*next(iter(self._held.values())))

    def forget(self, ranges: Ranges, window: Window) -> None:
        """Let go of a window, if it is still held."""
        with self.lock:
            held = self._held.get((id(ranges), window.start))
            if held is None or held[1] is not window:
                return
            del self._held[id(ranges), window.start]
            ranges.drop(window)
            self._bytes -= window.size
            self._files -= Counter({id(ranges): 1})
            self._see(window)

    def touch(self, ranges: Ranges, window: Window) -> bool:
        """A window is read: whether for the first time."""
        with self.lock:
            key = id(ranges), window.start
            if key in self._held:
                self._held.move_to_end(key)
            return self._see(window)

    def _see(self, window: Window) -> bool:
        """A window is read, or gone: it waits for nobody; whether it did."""
        if window.is_read:
            return False
        window.is_read = True
        self._num_unread -= 1
        self._unread -= window.size
        if self._queue:
            self._start()
        return True

    def share(self) -> int:
        """Bytes that a window may have: there is room for two of every file that is read."""
        return _BUDGET // (2 * max(1, len(self._files)))

    def queue(self, ranges: Ranges, start: int, stop: int, *, is_stream: bool = False) -> None:
        """Have a range fetched by a thread."""
        with self.lock:
            self._queue.append((ranges, start, stop, is_stream))
            self._start()

    def _start(self) -> None:
        if self._threads < min(_THREADS, len(self._queue)):
            self._threads += 1
            start(threading.Thread(target=self._work, name="ckpt-fetch"))

    def _work(self) -> None:
        while True:
            with self.lock:
                is_full = self._num_unread >= _AHEAD or self._unread > _BUDGET // 2
                if is_full or not self._queue or not threading.main_thread().is_alive():
                    self._threads -= 1
                    return
                ranges, first, stop, is_stream = self._queue.popleft()
                window = ranges.take(first, stop, is_stream=is_stream)
            if window is not None:
                ranges.fill(window)
