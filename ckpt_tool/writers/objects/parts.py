"""Memory for the parts of objects that are on their way, and how an object is cut into them.

Stores take 10,000 parts of an object at most, and none below 5 MiB but the last. obstore sends a
part when it has all of it, and keeps what is left over until the end. So parts are so long that
next to nothing is left over: an object can then wait for its end without taking memory.
"""

from __future__ import annotations

import mmap
import threading
import weakref

#: The shortest part; they are less than twice as long.
_PART_BYTES = 8 << 20
_MOST_PARTS = 9000
#: Of all parts that are filled or on their way.
_BUDGET = 96 << 20
#: Whatever their size, so many can be on their way.
_LEAST_PARTS = 3


def choose_part(size: int) -> int:
    """How long the parts of an object of ``size`` bytes are; fewer bytes than parts are left over.

    >>> choose_part(5_000_000_000), choose_part(100)
    (8389261, 100)
    """
    least = max(_PART_BYTES, -(-size // _MOST_PARTS))
    return max(1, size // max(1, size // least))


class PartPool:
    """Buffers for parts; whoever wants one waits until there is room. ``changed``: something is.

    A buffer comes back by itself when nobody has a view of it any more.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._free: list[mmap.mmap] = []
        self._taken = 0

    def take(self, size: int) -> memoryview | None:
        """A view of ``size`` bytes, or None: no room. Whoever calls has the lock of ``changed``."""
        if self._taken + size > max(_BUDGET, _LEAST_PARTS * size):
            return None
        self._taken += size
        buffer = next((each for each in reversed(self._free) if len(each) >= size), None)
        if buffer is None:
            length = max(size, 2 * _PART_BYTES)
            buffer = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            self._free.remove(buffer)
        view = memoryview(buffer)[:size]
        weakref.finalize(view, self._give_back, buffer, size).atexit = False
        return view

    def _give_back(self, buffer: mmap.mmap, size: int) -> None:
        with self.changed:
            self._taken -= size
            if len(self._free) * 2 * _PART_BYTES < _BUDGET:
                self._free.append(buffer)
            self.changed.notify_all()
