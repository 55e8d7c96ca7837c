"""The element types: one table of torch name, safetensors name, size and kind.

Safetensors names are those of its header format (``"F32"``, ``"BF16"``, ...); torch names are the
part after ``torch.``. ``carrier`` is the numpy type with which raw elements are moved.

Of formats with less than a byte an element here is a byte, as in torch's ``float4_e2m1fn_x2``:
shapes count bytes in the last dimension, and the numbers there in safetensors only. torch has no
formats of 6 bits; their names are those of ml_dtypes, with how many are in how many bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tool.tensors.geometry import Shape


@dataclass(frozen=True, slots=True)
class DType:
    """An element type; ``itemsize`` in bytes.

    ``packed``: how many numbers are in how many elements, where these are less than a byte.
    ``offset``: of one that elements are computed in, the number that is added to each, for reports.
    """

    name: str
    safetensors: str
    itemsize: int
    is_float: bool
    packed: tuple[int, int] = (1, 1)
    offset: float = 0.0

    @property
    def carrier(self) -> str:
        """Numpy type string of an unsigned integer with the same size."""
        return f"<u{self.itemsize}"

    @property
    def is_packed(self) -> bool:
        """Whether an element is no number, but a byte of several."""
        return self.packed != (1, 1)

    def from_header(self, shape: Shape) -> Shape:
        """The shape in elements of a tensor that safetensors gives ``shape``, in numbers.

        ValueError where the last dimension is no whole elements.
        """
        return self._scale(shape, *self.packed)

    def to_header(self, shape: Shape) -> Shape:
        """The other way round."""
        numbers, elements = self.packed
        return self._scale(shape, elements, numbers)

    def _scale(self, shape: Shape, old: int, new: int) -> Shape:
        if not self.is_packed:
            return shape
        if not shape or shape[-1] % old:
            raise ValueError(
                f"{self.safetensors} {list(shape)}: the last dimension is no multiple of {old}"
            )
        return (*shape[:-1], shape[-1] // old * new)

    def __str__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash(self.name)  # of all fields, once for each tensor, it takes time to notice


_ROWS = (
    DType("float64", "F64", 8, True),
    DType("float32", "F32", 4, True),
    DType("float16", "F16", 2, True),
    DType("bfloat16", "BF16", 2, True),
    DType("float8_e4m3fn", "F8_E4M3", 1, True),
    DType("float8_e5m2", "F8_E5M2", 1, True),
    DType("float8_e8m0fnu", "F8_E8M0", 1, True),
    DType("float8_e4m3fnuz", "F8_E4M3FNUZ", 1, True),
    DType("float8_e5m2fnuz", "F8_E5M2FNUZ", 1, True),
    DType("float6_e2m3fn_4in3", "F6_E2M3", 1, False, (4, 3)),
    DType("float6_e3m2fn_4in3", "F6_E3M2", 1, False, (4, 3)),
    DType("float4_e2m1fn_x2", "F4", 1, False, (2, 1)),
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

#: What nobody asked to be cast may stay; no cast of these is known, with or without scales.
UNCASTABLE = frozenset(row for row in _ROWS if row.is_packed or row.name.endswith("fnuz"))

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
