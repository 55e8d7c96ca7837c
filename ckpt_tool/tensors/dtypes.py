"""The element types: one table of torch name, safetensors name, size and kind.

Safetensors names are those of its header format (``"F32"``, ``"BF16"``, ...); torch names are the
part after ``torch.``. ``carrier`` is the numpy type with which raw elements are moved.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """An element type; ``itemsize`` in bytes."""

    name: str
    safetensors: str
    itemsize: int
    is_float: bool

    @property
    def carrier(self) -> str:
        """Numpy type string of an unsigned integer with the same size."""
        return f"<u{self.itemsize}"

    def __str__(self) -> str:
        return self.name


_ROWS = (
    DType("float64", "F64", 8, True),
    DType("float32", "F32", 4, True),
    DType("float16", "F16", 2, True),
    DType("bfloat16", "BF16", 2, True),
    DType("float8_e4m3fn", "F8_E4M3", 1, True),
    DType("float8_e5m2", "F8_E5M2", 1, True),
    DType("float8_e8m0fnu", "F8_E8M0", 1, True),
    DType("complex64", "C64", 8, False),
    DType("int64", "I64", 8, False),
    DType("int32", "I32", 4, False),
    DType("int16", "I16", 2, False),
    DType("int8", "I8", 1, False),
    DType("uint64", "U64", 8, False),
    DType("uint32", "U32", 4, False),
    DType("uint16", "U16", 2, False),
    DType("uint8", "U8", 1, False),
    DType("bool", "BOOL", 1, False),
)

BY_NAME = {row.name: row for row in _ROWS}
BY_SAFETENSORS = {row.safetensors: row for row in _ROWS}

#: Bytes of the longest header that the safetensors library reads.
MAX_SAFETENSORS_HEADER = 100_000_000

FLOAT64 = BY_NAME["float64"]
FLOAT32 = BY_NAME["float32"]
FLOAT16 = BY_NAME["float16"]
BFLOAT16 = BY_NAME["bfloat16"]
UINT8 = BY_NAME["uint8"]

#: Types that are cast; fp8 needs its scales, and integers are not weights.
CASTABLE = frozenset({FLOAT64, FLOAT32, FLOAT16, BFLOAT16})

#: Typed storages of torch.save archives (``torch.<Name>Storage``).
BY_STORAGE = {
    storage: BY_NAME[name]
    for storage, name in (
        ("DoubleStorage", "float64"),
        ("FloatStorage", "float32"),
        ("HalfStorage", "float16"),
        ("BFloat16Storage", "bfloat16"),
        ("ComplexFloatStorage", "complex64"),
        ("LongStorage", "int64"),
        ("IntStorage", "int32"),
        ("ShortStorage", "int16"),
        ("CharStorage", "int8"),
        ("ByteStorage", "uint8"),
        ("BoolStorage", "bool"),
        ("UntypedStorage", "uint8"),
    )
}
