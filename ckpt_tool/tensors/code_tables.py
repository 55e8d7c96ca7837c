"""What numbers of four bits are, and the factors of MXFP4.

Source: OCP Microscaling Formats 1.0 (E2M1, E8M0); compressed-tensors for INT4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.tensors.casts import Caster
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT32

#: MXFP4's numbers: sign, two bits of exponent, one of mantissa.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
#: Of its factors: what their exponents are more, and the one that is no number.
BIAS, _NAN = 127, 255


def make_products(caster: Caster) -> NDArray[np.uint32]:
    """Both products of each factor with each byte of MXFP4, as bfloat16 side by side."""
    with np.errstate(over="ignore", invalid="ignore"):
        exact = PAIRS["MXFP4"].view(np.float32)[None, :] * POWERS[:, None]
    bits = np.empty(exact.size, np.uint16)
    caster.cast(exact.view(np.uint32).reshape(-1), FLOAT32, bits, BFLOAT16, 0.0)
    return bits.view(np.uint32)


def _make_pairs(values: NDArray[Any]) -> NDArray[np.uint64]:
    """What both numbers of each byte are, as float32 side by side, the lower half first."""
    codes = np.arange(256)
    both = np.stack((values[codes & 15], values[codes >> 4]), axis=1).astype(np.float32)
    return both.view(np.uint64).reshape(-1)


def _make_powers() -> NDArray[np.float32]:
    powers = np.full(_NAN + 1, np.nan, np.float32)
    powers[:_NAN] = np.ldexp(np.float32(1), np.arange(_NAN) - BIAS)
    return powers


#: The two numbers of each byte, by the format.
PAIRS: dict[str, NDArray[np.uint64]] = {
    "MXFP4": _make_pairs(np.array([*_E2M1, *(-value for value in _E2M1)])),
    "INT4": _make_pairs(np.arange(16) - 8),
}
#: The factors of MXFP4 by their bytes.
POWERS = _make_powers()
