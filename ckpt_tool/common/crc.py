"""CRC-32, the checksum of zip and gzip: of bytes, and of runs of bytes put together."""

from __future__ import annotations

from functools import lru_cache

_POLYNOMIAL = 0xEDB88320  # bits reversed
_ONE = 1 << 31  # the polynomial 1, bits reversed

__all__ = ["combine", "combine_plainly", "crc32"]


def combine_plainly(first: int, second: int, length: int) -> int:
    """What :func:`combine` gives, without a library.

    A CRC is the remainder of a polynomial, so appending bytes multiplies it by x**(8 * length).
    """
    return _multiply(_power(8 * length), first) ^ second


try:
    from isal.isal_zlib import crc32, crc32_combine
except ImportError:  # no wheel for this machine: an order of magnitude slower, and as exact
    from zlib import crc32

    crc32_combine = combine_plainly


def combine(first: int, second: int, length: int) -> int:
    """The CRC of two runs of bytes, one after the other; ``length``: bytes of the second."""
    found: int = crc32_combine(first, second, length)
    return found


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
