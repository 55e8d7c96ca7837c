"""Ranges of bytes of remote files: few requests, many at a time, no more memory than is set.

A request takes as long as it takes a megabyte to arrive. So whoever knows what will be read says it
before: threads fetch that while other things go on. What is read unannounced is fetched as it is, a
short read with some bytes behind it, more of them while reads follow each other.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable

from ckpt_tool.common.remote.pool import Pool
from ckpt_tool.common.remote.windows import Window

#: Asks for bytes ``[start, stop)`` of a file.
Fetch = Callable[[int, int], memoryview]

#: Reads as long as this are fetched as they are, and kept for nobody.
_LONG = 256 << 10
#: What a short read gets at first, and at last.
_LEAST, _MOST = 16 << 10, 1 << 20
#: Bytes of a request for what was announced.
_REQUEST = 2 << 20
#: A read that begins so little behind another follows it.
_GAP = 4 << 10
_STREAMS = 64  # ends of reads that are remembered, by file
#: Bytes between two announcements that cost no more than a request for the second; and those of a
#: request for several.
_NEAR, _LONGEST = 128 << 10, 512 << 10

#: Bytes ``[start, stop)`` of the file of a number: that, start, stop.
Span = tuple[int, int, int]


def join_near(spans: Iterable[Span]) -> list[Span]:
    """Spans for one request each that hold all of ``spans``, which may lie in many files.

    They are in the order of what is first in each: that is read first.
    """
    runs: list[tuple[int, Span]] = []  # with the place of what is first in it
    ordered = sorted((span, place) for place, span in enumerate(spans))
    for (number, start, stop), place in ordered:
        if runs:
            first, (before, begin, end) = runs[-1]
            longest = max(end, stop)
            if number == before and start <= end + _NEAR and longest - begin <= _LONGEST:
                runs[-1] = min(first, place), (number, begin, longest)
                continue
        runs.append((place, (number, start, stop)))
    return [run for _, run in sorted(runs)]


class Ranges:
    """The windows of a file of ``size`` bytes, which ``fetch`` reads, in the memory of ``pool``."""

    def __init__(self, size: int, fetch: Fetch, pool: Pool) -> None:
        self.size = size
        self._fetch = fetch
        self._pool = pool
        self._starts: list[int] = []
        self._windows: dict[int, Window] = {}
        self._ends: OrderedDict[int, int] = OrderedDict()  # end of a read: length of its window

    def read(self, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from byte ``offset`` on; how many bytes, fewer only where the file ends.

        Raises what ``fetch`` does.
        """
        stop, at = min(offset + len(buffer), self.size), offset
        while at < stop:
            with self._pool.lock:
                window, until = self._find(at)
                until = min(until, stop)
                if window is None:
                    window = self._make(at, until)
                    self._pool.start(self, window)
            self._pool.touch(self, window)
            piece = window.content.result()[at - window.start : stop - window.start]
            buffer[at - offset : at - offset + len(piece)] = piece
            at += len(piece)
            self._leave(window, len(piece))
        return max(0, at - offset)

    def expect(self, start: int, stop: int) -> None:
        """These few bytes will be read some time: there may be any number of such announcements."""
        start, stop = max(0, start), min(stop, self.size)
        if start < stop:
            self._pool.queue(self, start, stop)

    def withdraw(self) -> None:
        """Nothing is read any more of what was announced: it would hold back what is."""
        with self._pool.lock:
            self._pool.withdraw(self)
            for window in [each for each in self._windows.values() if each.is_expected]:
                self._pool.forget(self, window)

    def order(self, start: int, stop: int) -> None:
        """These bytes will be read next: they are fetched at once, and kept until they are read."""
        at, stop = max(0, start), min(stop, self.size)
        with self._pool.lock:
            while at < stop:
                window, until = self._find(at)
                until = min(until, stop, at + _REQUEST)
                if window is None:
                    self._pool.start(self, self._take(at, until, is_expected=True))
                at = until

    def fetch_expected(self, start: int, stop: int) -> Window | None:
        """A new window for the first of these bytes that are in none; None where all are in one.

        The pool's lock is held.
        """
        window, until = self._find(start)
        while window is not None and until < stop:
            start = until
            window, until = self._find(start)
        if window is not None:
            return None
        return self._take(start, min(until, stop), is_expected=True)

    def fill(self, window: Window) -> None:
        """Fetch the bytes of a window; whoever waits for them gets what is raised, too.

        It is not kept then: whoever asks again may have more luck.
        """
        try:
            window.settle(self._fetch(window.start, window.stop))
        except BaseException as error:
            window.settle(error)
            self._pool.forget(self, window)

    def drop(self, window: Window) -> None:
        """Forget a window; the pool's lock is held."""
        del self._windows[window.start]
        del self._starts[bisect_right(self._starts, window.start) - 1]

    def _find(self, at: int) -> tuple[Window | None, int]:
        """The window that has byte ``at``, if one has; how far that, or else the gap, goes."""
        place = bisect_right(self._starts, at)
        window = self._windows[self._starts[place - 1]] if place else None
        if window is not None and at < window.stop:
            return window, window.stop
        return None, self._starts[place] if place < len(self._starts) else self.size

    def _take(self, start: int, stop: int, *, is_expected: bool) -> Window:
        window = Window(start, stop, is_expected=is_expected)
        self._windows[start] = window
        insort(self._starts, start)
        self._pool.hold(self, window)
        return window

    def _make(self, at: int, until: int) -> Window:
        """The window for a read that nobody announced; a long one is kept for nobody."""
        if until - at >= _LONG:
            return Window(at, until, is_expected=False)
        return self._take(at, self._choose_stop(at, until), is_expected=False)

    def _choose_stop(self, at: int, until: int) -> int:
        """Where the window of a short read ends that nobody announced."""
        before = next((end for end in reversed(self._ends) if 0 <= at - end <= _GAP), None)
        length = _LEAST if before is None else min(4 * self._ends.pop(before), _MOST)
        stop = min(max(at + length, until), self._find(at)[1])
        self._ends[stop] = stop - at
        if len(self._ends) > _STREAMS:
            self._ends.popitem(last=False)
        return stop

    def _leave(self, window: Window, count: int) -> None:
        """So many bytes of a window were read; of one that was, all of it, nothing is kept."""
        with self._pool.lock:
            window.left -= count
            if window.left <= 0:
                self._pool.forget(self, window)
