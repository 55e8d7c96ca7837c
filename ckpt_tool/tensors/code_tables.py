"""What numbers of four bits and of fp8 are, and factors of a byte.

Source: OCP Microscaling Formats 1.0 (E2M1, E8M0), OCP 8-bit Floating Point 1.0 (E4M3);
compressed-tensors for INT4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: FP4's numbers: sign, two bits of exponent, one of mantissa.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
#: Of factors that are powers of two: what exponents are more, and the one that is no number.
BIAS, _NAN = 127, 255
_CODES = 256


def _make_pairs(values: NDArray[Any]) -> NDArray[np.uint64]:
    """What both numbers of each byte are, as float32 side by side, the lower half first."""
    codes = np.arange(_CODES)
    both = np.stack((values[codes & 15], values[codes >> 4]), axis=1).astype(np.float32)
    return both.view(np.uint64).reshape(-1)


def _make_powers() -> NDArray[np.float32]:
    powers = np.full(_NAN + 1, np.nan, np.float32)
    powers[:_NAN] = np.ldexp(np.float32(1), np.arange(_NAN) - BIAS)
    return powers


def _make_e4m3() -> NDArray[np.float32]:
    """The value of each of the 256 bit patterns: subnormals, no infinities, two NaNs."""
    codes = np.arange(_CODES)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    significand = np.where(exponent > 0, mantissa + 8, mantissa).astype(np.float32)
    values: NDArray[np.float32] = np.ldexp(significand, np.maximum(exponent, 1) - 10)
    values[codes & 127 == 127] = np.nan
    values[codes >= 128] *= -1
    return values


_FP4 = np.array([*_E2M1, *(-value for value in _E2M1)], np.float32)
#: What the 16 numbers are, by the format.
NUMBERS: dict[str, NDArray[np.float32]] = {
    "MXFP4": _FP4,
    "NVFP4": _FP4,
    "INT4": np.arange(-8, 8, dtype=np.float32),
}
#: The two numbers of each byte.
PAIRS = {kind: _make_pairs(numbers) for kind, numbers in NUMBERS.items()}
#: Factors that are powers of two (E8M0), and numbers of fp8 (E4M3), by their bytes.
POWERS, E4M3 = _make_powers(), _make_e4m3()
