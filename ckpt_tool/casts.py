"""Floating-point casts on raw little-endian elements, equal to torch's bit for bit.

Every cast goes through float32, as torch's do (``double -> bfloat16`` rounds twice there, so it
does here). Rounding is to nearest, ties to even. The one exception is NaN: torch's bits depend on
the processor, so here a NaN that is narrowed becomes the quiet NaN ``0x7fc0`` / ``0x7e00``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.dtypes import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, DType

#: Elements per step: few enough to stay in a core's cache, enough that threads rarely meet at the
#: interpreter lock, which numpy takes between any two operations.
STEP = 1 << 17

_ABS = np.uint32(0x7FFFFFFF)
_KEPT = np.uint32(0xFFFF0000)
_INFINITY = 0x7F800000

Bits = NDArray[Any]


class Caster:
    """Casts blocks of elements with reused scratch memory; one instance per thread."""

    def __init__(self) -> None:
        self._words = np.empty(STEP, np.uint32)
        self._wide = np.empty(STEP, np.float32)

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
            wide = self._to_float32(part, source_dtype)
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

    def _to_float32(self, part: Bits, dtype: DType) -> NDArray[np.float32]:
        wide = self._wide[: len(part)]
        if dtype == FLOAT32:
            return part.view(np.float32)
        if dtype == BFLOAT16:
            np.left_shift(part, 16, out=wide.view(np.uint32), dtype=np.uint32)
        elif dtype == FLOAT16:
            wide[:] = part.view(np.float16)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                wide[:] = part.view(np.float64)
        return wide

    def _narrow_bfloat16(self, wide: NDArray[np.float32], out: Bits, floor: float) -> float:
        """Round to nearest even in integer arithmetic: add 0x7fff plus the kept part's last bit.

        The error of a normal number with exponent e is at most half a bfloat16 ulp, 2**(e - 8):
        it is measured only where the largest magnitude may exceed the floor.
        """
        words = wide.view(np.uint32)
        rounded = self._words[: len(words)]
        largest = int(np.bitwise_and(words, _ABS, out=rounded).max(initial=0))
        np.right_shift(words, 16, out=rounded)
        np.bitwise_and(rounded, 1, out=rounded)
        np.add(rounded, 0x7FFF, out=rounded)
        np.add(rounded, words, out=rounded)
        out[:] = rounded.view(np.uint16)[1::2]
        if largest > _INFINITY:
            out[np.isnan(wide)] = 0x7FC0
        # Below 1e-37 subnormal numbers err by more than their exponent says.
        if floor > 1e-37 and largest <= int(np.float32(min(floor * 256, 3e38)).view(np.uint32)):
            return floor
        narrowed = np.bitwise_and(rounded, _KEPT, out=rounded).view(np.float32)
        if largest >= _INFINITY - 0x8000:  # NaN, infinite, or rounded to infinity
            return _largest_error(wide, narrowed)
        np.subtract(wide, narrowed, out=narrowed)
        return max(float(narrowed.max(initial=0)), -float(narrowed.min(initial=0)))


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
