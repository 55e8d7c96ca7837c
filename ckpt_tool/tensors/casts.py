"""Floating-point casts on raw little-endian elements, equal to torch's bit for bit.

Every cast goes through float32, as torch's do (``double -> bfloat16`` rounds twice there, so it
does here). Rounding is to nearest, ties to even. The one exception is NaN: torch's bits depend on
the processor, so here a NaN that is narrowed becomes the quiet NaN ``0x7fc0`` / ``0x7e00``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, DType

#: Elements per step: few enough to stay in a core's cache, enough that threads rarely meet at the
#: interpreter lock, which numpy takes between any two operations.
STEP = 1 << 18

_HALF_WIDTH = np.uint32(16)
_ONE = np.uint16(1)
_ABS = np.uint16(0x7FFF)
_TIE = np.uint16(0x8000)
_INFINITY = 0x7F80  # upper half

Bits = NDArray[Any]


class Caster:
    """Casts blocks of elements with reused scratch memory; one instance per thread."""

    def __init__(self) -> None:
        self._wide, self._back = np.empty(STEP, np.float32), np.empty(STEP, np.float32)
        self._low = np.empty(STEP, np.uint16)
        self._up = np.empty(STEP, np.uint16)

    def cast(
        self, source: Bits, source_dtype: DType, target: Bits, target_dtype: DType, floor: float
    ) -> float:
        """Cast carrier elements ``source`` into ``target`` (1-D, same length).

        Returns the largest absolute rounding error of a finite element (infinity where one
        overflows), or ``floor`` where no error exceeds it: passing the largest error known so far
        spares most of the work of measuring.
        """
        for at in range(0, len(source), STEP):
            part, out = source[at : at + STEP], target[at : at + STEP]
            straight = target_dtype == FLOAT32 and source_dtype in (BFLOAT16, FLOAT16)
            wide = out.view(np.float32) if straight else self._wide[: len(part)]
            wide = self._to_float32(part, source_dtype, wide)
            if straight:
                continue
            if target_dtype == BFLOAT16:
                error = self._narrow_bfloat16(wide, out, floor)
            elif target_dtype == FLOAT16:
                error = _narrow_float16(wide, out)
            else:
                error = _widen(wide, out, target_dtype)
            if source_dtype == FLOAT64:  # the two steps' errors may add up, or cancel
                error = _error_from_float64(part, out, target_dtype)
            floor = max(floor, error)
        return floor

    def cast_bytes(
        self, raw: memoryview, source: DType, out: memoryview, target: DType, floor: float
    ) -> float:
        """:meth:`cast` of the elements in ``raw`` into the bytes of ``out``."""
        bits = np.frombuffer(raw, source.carrier), np.frombuffer(out, target.carrier)
        return self.cast(bits[0], source, bits[1], target, floor)

    def _to_float32(
        self, part: Bits, dtype: DType, wide: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The elements of ``part``: in ``wide``, or as they lie."""
        if dtype == FLOAT32:
            return part.view(np.float32)
        if dtype == BFLOAT16:
            words = wide.view(np.uint32)
            np.copyto(words, part)
            np.left_shift(words, _HALF_WIDTH, out=words)
        elif dtype == FLOAT16:
            wide[:] = part.view(np.float16)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                wide[:] = part.view(np.float64)
        return wide

    def _narrow_bfloat16(self, wide: NDArray[np.float32], out: Bits, floor: float) -> float:
        """Round to nearest, ties to even, in steps of which all but two work on halves of words.

        The upper half goes up where the lower one is more than a tie, or a tie and the upper half
        is odd: ``(low | upper & 1) > 0x8000``.
        The error of a normal number with exponent e is at most half a bfloat16 ulp, 2**(e - 8).
        """
        words = wide.view(np.uint32)
        low, up = self._low[: len(out)], self._up[: len(out)]
        np.right_shift(words, _HALF_WIDTH, out=out, casting="unsafe")
        np.copyto(low, words, casting="unsafe")
        largest = _magnitude(out)
        np.bitwise_and(out, _ONE, out=up)
        np.bitwise_or(low, up, out=low)
        above = np.greater(low, _TIE, out=up.view(np.bool_)[: len(out)])
        np.add(out, above.view(np.uint8), out=out)
        if largest >= _INFINITY:
            out[np.isnan(wide)] = 0x7FC0
        return max(floor, self._largest_bfloat16_error(wide, out, largest, floor))

    def _largest_bfloat16_error(
        self, wide: NDArray[np.float32], out: Bits, largest: int, floor: float
    ) -> float:
        """The error, where it may be more than ``floor``: only of numbers large enough for that.

        ``largest``: the largest upper half in ``wide``, sign aside.
        """
        if floor > 1e-37:  # below, subnormal numbers err by more than their exponent says
            limit = _bits_of(min(floor * 256, 3e38)) >> 16
            if largest <= limit:
                return floor
            magnitudes = np.bitwise_and(out, _ABS, out=self._low[: len(out)])
            chosen = np.flatnonzero(magnitudes > limit)
            wide, out = wide[chosen], out[chosen]
        narrowed = self._widened(out)
        if largest >= _INFINITY - 1:  # NaN, infinite, or rounded to infinity
            return _largest_error(wide, narrowed)
        np.subtract(wide, narrowed, out=narrowed)
        return max(float(narrowed.max(initial=0)), -float(narrowed.min(initial=0)))

    def _widened(self, halves: Bits) -> NDArray[np.float32]:
        wide = self._back[: len(halves)]
        np.left_shift(halves, _HALF_WIDTH, out=wide.view(np.uint32), dtype=np.uint32)
        return wide


def _magnitude(halves: Bits) -> int:
    """The largest of bfloat16 bit patterns, signs aside."""
    signed = int(halves.view(np.int16).max(initial=0))
    unsigned = int(halves.max(initial=0))
    return max(signed, unsigned & 0x7FFF if unsigned & 0x8000 else 0)


def _bits_of(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def _widen(wide: NDArray[np.float32], out: Bits, dtype: DType) -> float:
    if dtype == FLOAT64:
        with np.errstate(invalid="ignore"):
            out.view(np.float64)[:] = wide
    else:
        out[:] = wide.view(np.uint32)
    return 0.0


def _narrow_float16(wide: NDArray[np.float32], out: Bits) -> float:
    half = out.view(np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        half[:] = wide
    nan = np.isnan(wide)
    if nan.any():
        out[nan] = 0x7E00
    return _largest_error(wide, half.astype(np.float32))


def _error_from_float64(source: Bits, target: Bits, dtype: DType) -> float:
    """The error of the whole cast, which may be more than that of its second step."""
    if dtype == BFLOAT16:
        rounded = (target.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        rounded = target.view(np.float16 if dtype == FLOAT16 else np.float32)
    with np.errstate(invalid="ignore"):
        return _largest_error(source.view(np.float64), rounded.astype(np.float64))


def _largest_error(exact: NDArray[Any], rounded: NDArray[Any]) -> float:
    """The largest |exact - rounded| over finite ``exact``; inf where one became infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(exact - rounded)
    error[~np.isfinite(exact)] = 0.0
    return float(error.max(initial=0.0))
