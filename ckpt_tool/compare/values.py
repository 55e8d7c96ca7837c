"""Raw little-endian elements as float64 values, and as integers that count representable numbers.

The formats are IEEE 754, bfloat16 (its upper half) and the 8-bit formats of the OCP specification:
e4m3fn (no infinities, NaN is 0x7f), e5m2 (IEEE-like) and e8m0fnu (powers of two, NaN is 0xff);
e4m3fnuz and e5m2fnuz have a bias of one more, no infinities, and NaN in place of -0. What is packed
in bytes is taken for these bytes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.tensors.dtypes import DType

Values = NDArray[np.float64]

_NATIVE = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "complex64": "<f4", "int64": "<i8",
    "int32": "<i4", "int16": "<i2", "int8": "<i1", "uint64": "<u8", "uint32": "<u4",
    "uint16": "<u2", "uint8": "<u1", "bool": "<u1", "float4_e2m1fn_x2": "<u1",
    "float6_e2m3fn_4in3": "<u1", "float6_e3m2fn_4in3": "<u1",
}  # fmt: skip
_ORDERED = frozenset({"float64", "float32", "float16", "bfloat16"})


def view_bits(raw: memoryview, dtype: DType) -> NDArray[Any]:
    """The elements as unsigned integers."""
    return np.frombuffer(raw, dtype.carrier)


def count_values(size: int, dtype: DType) -> int:
    """How many values :func:`decode_values` finds in ``size`` bytes."""
    return size // np.dtype(_NATIVE.get(dtype.name, dtype.carrier)).itemsize


def decode_values(raw: memoryview, dtype: DType) -> Values:
    """The elements as float64, exactly (64-bit integers rounded); a complex one as two values."""
    return decode_into(raw, dtype, np.empty(count_values(len(raw), dtype)))


def decode_into(
    raw: memoryview, dtype: DType, out: Values, spare: NDArray[np.uint32] | None = None
) -> Values:
    """The same in ``out``, which is returned; ``spare``, as long, is memory to work in."""
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        if dtype.name == "bfloat16":
            words = np.left_shift(view_bits(raw, dtype), 16, out=spare, dtype=np.uint32)
            out[:] = words.view(np.float32)
        elif dtype.name in _NATIVE:
            out[:] = np.frombuffer(raw, _NATIVE[dtype.name])
        else:  # every pattern is in the table: "clip" never does, and takes no memory
            np.take(_small_floats(dtype.name), view_bits(raw, dtype), out=out, mode="clip")
    return out


def is_ordered(dtype: DType) -> bool:
    """Whether :func:`order_bits` is defined."""
    return dtype.name in _ORDERED


def order_bits(bits: NDArray[Any], out: NDArray[Any], spare: NDArray[Any]) -> NDArray[Any]:
    """Integers in the order of the numbers, neighbours one apart: their difference is in ULP.

    They are signed, as wide as the elements, and put in ``out``, which is returned; ``spare`` is
    memory to work in. Both are like ``bits``, which are unsigned.
    """
    kind, last = bits.dtype.type, 8 * bits.dtype.itemsize - 1
    signed = f"<i{bits.dtype.itemsize}"
    values, negative = out.view(signed), spare.view(signed)
    np.right_shift(bits.view(signed), last, out=negative)  # -1 or 0
    np.bitwise_and(bits, kind((1 << last) - 1), out=out)
    np.bitwise_xor(values, negative, out=values)
    np.subtract(values, negative, out=values)
    return values


@cache
def _small_floats(name: str) -> Values:
    """The values of the 256 patterns of an 8-bit format."""
    if name == "float8_e8m0fnu":
        return np.array([*(2.0 ** (code - 127) for code in range(255)), np.nan])
    exponent_bits, mantissa_bits = (4, 3) if name.startswith("float8_e4m3fn") else (5, 2)
    more = int(name.endswith("fnuz"))
    table = [_small_float(code, exponent_bits, mantissa_bits, more) for code in range(256)]
    if more:
        table[0x80] = float("nan")
    elif name == "float8_e4m3fn":
        table[0x7F] = table[0xFF] = float("nan")
    else:
        for sign, infinity in ((0, float("inf")), (0x80, -float("inf"))):
            table[sign | 0x7C] = infinity
            for code in (0x7D, 0x7E, 0x7F):
                table[sign | code] = float("nan")
    return np.array(table)


def _small_float(code: int, exponent_bits: int, mantissa_bits: int, more: int) -> float:
    """``more``: of the bias, than IEEE 754 would have."""
    bias = (1 << (exponent_bits - 1)) - 1 + more
    exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1)
    fraction: float = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    value = (1 + fraction) * 2.0 ** (exponent - bias) if exponent else fraction * 2.0 ** (1 - bias)
    return -value if code & 0x80 else value
