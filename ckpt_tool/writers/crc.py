"""CRC-32 of data that several threads write in pieces."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ckpt_tool.common.crc import combine, crc32


class PieceSums:
    """The CRC of each item of a file, put together from pieces that arrive in any order.

    An item is whole when the pieces have as many bytes as it; who needs its CRC waits for that.
    """

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._pieces: dict[int, dict[int, tuple[int, int]]] = {}
        self._changed = threading.Condition()
        self._stopped = stopped

    def add(self, item: int, start: int, data: memoryview) -> None:
        """Take the bytes of ``item`` from ``start`` on."""
        found = crc32(data)
        with self._changed:
            self._pieces.setdefault(item, {})[start] = (found, len(data))
            self._changed.notify_all()

    def whole(self, item: int, size: int) -> int:
        """The CRC of ``item``, of ``size`` bytes; waits for pieces that other threads have.

        0 where the work was given up meanwhile: nobody will use the file.
        """
        with self._changed:
            while self._held(item) < size and not self._stopped():
                self._changed.wait(0.05)
            if self._held(item) < size:
                return 0
            pieces = sorted(self._pieces.pop(item, {}).items())
        total = 0
        for _, (found, length) in pieces:
            total = combine(total, found, length)
        return total

    def _held(self, item: int) -> int:
        return sum(length for _, length in self._pieces.get(item, {}).values())
