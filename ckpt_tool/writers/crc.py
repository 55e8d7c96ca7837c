"""CRC-32 of data that several threads write in pieces (the polynomial of zip and gzip)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache

try:
    from isal.isal_zlib import crc32
except ImportError:  # no wheel for this machine: an order of magnitude slower, and as exact
    from zlib import crc32

_POLYNOMIAL = 0xEDB88320  # bits reversed
_ONE = 1 << 31  # the polynomial 1, bits reversed

__all__ = ["PieceSums", "combine", "crc32"]


def combine(first: int, second: int, length: int) -> int:
    """The CRC of two runs of bytes, one after the other; ``length``: bytes of the second.

    A CRC is the remainder of a polynomial, so appending bytes multiplies it by x**(8 * length).
    """
    return _multiply(_power(8 * length), first) ^ second


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


@lru_cache(maxsize=256)
def _power(exponent: int) -> int:
    """x**exponent modulo the polynomial."""
    result, base = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            result = _multiply(result, base)
        base = _multiply(base, base)
        exponent >>= 1
    return result


def _multiply(a: int, b: int) -> int:
    """The product of two polynomials modulo the polynomial."""
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        bit >>= 1
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product
