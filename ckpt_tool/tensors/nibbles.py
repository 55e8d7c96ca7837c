"""Weights of four bits with a factor for each group of them along a row, as one tensor.

Two of them are in a byte, the first in its lower half; a group is next to the other in its row:

- MXFP4 (OCP Microscaling Formats 1.0): numbers of one sign, two exponent and one mantissa bits in
  groups of 32, whose factor is a byte: a power of two, 127 more than its exponent; 255 is NaN.
- INT4 (``pack-quantized`` of compressed-tensors, symmetric): numbers from -8 to 7, stored 8 more,
  in little-endian words of 32 bits; factors are floats.

A weight is ``value * factor`` in float32, which is exact for MXFP4 and for INT4 with factors of 16
bits, then rounded once to the dtype asked for. Here is only where everything lies, which takes no
numpy; :mod:`ckpt_tool.tensors.codes` computes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.dtypes import BFLOAT16, BY_NAME, CASTABLE, FLOAT16, FLOAT32, UINT8, DType
from ckpt_tool.tensors.geometry import Shape, make_strides
from ckpt_tool.tensors.lazy import LazyTensor, hold
from ckpt_tool.tensors.reshaped import reshape

Kind = Literal["MXFP4", "INT4"]

INT32, INT64 = BY_NAME["int32"], BY_NAME["int64"]
#: What the shape of a weight of INT4 is written in: by Kimi-K2-Thinking, by compressed-tensors.
SHAPE_DTYPES = (INT32, INT64)
#: Numbers that have one factor in MXFP4, and the bytes that they take.
MX_GROUP, _MX_BYTES = 32, 16
#: Numbers in a word of INT4.
_WORD = 8


@dataclass(frozen=True, slots=True, eq=False)
class Nibbles:
    """What a weight [..., R, C] is made of: ``codes`` [..., R, N], and ``scales`` [..., R, G].

    Of MXFP4 ``codes`` have one dimension more, of the bytes of a group. ``group`` numbers of a row,
    which are whole elements, have a factor. ``said``: the shape as the file has it, read to be
    compared before the first weight is. ``is_turned``: the weight is [..., C, R] then.
    """

    kind: Kind
    shape: Shape
    codes: LazyTensor
    scales: LazyTensor
    group: int
    said: LazyTensor | None = None
    is_turned: bool = False

    @property
    def dtype(self) -> DType:
        """What products are computed in."""
        return FLOAT32

    @property
    def origin(self) -> DType:
        """What codes have on disk."""
        return self.codes.dtype

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        """Numbers, factors and, where it is in a file, the shape."""
        return (self.codes, self.scales) + ((self.said,) if self.said is not None else ())

    @property
    def recipe(self) -> str:
        """What shares a factor."""
        return f"{self.kind} * scales of {self.group}, as {list(self.shape)}"

    def open(self, reader: Reader) -> Filler:
        """What multiplies. FormatError where the file says another shape."""
        from ckpt_tool.tensors.codes import NibbleFiller, Operands, check_shape

        if self.said is not None:
            check_shape(self.said, self.shape, reader)
        parts = (self.kind, self.codes, self.scales, self.group, self.is_turned)
        return NibbleFiller(Operands(*parts), reader)


def unpack_mxfp4(blocks: LazyTensor, scales: LazyTensor, dtype: DType) -> LazyTensor:
    """MXFP4 ``blocks`` uint8 ``[..., R, G, 16]`` times ``scales`` uint8 ``[..., R, G]``.

    The result is ``[..., 32 G, R]`` of ``dtype``: rows and columns change places, as they do where
    GPT-OSS has been unpacked. ValueError where a shape or a dtype is another
    one; reads nothing.
    """
    _require(dtype in CASTABLE, f"no cast from MXFP4 to {dtype}")
    _require(_is_plain(blocks, UINT8), f"blocks of {blocks.dtype}, expected uint8")
    _require(_is_plain(scales, UINT8), f"scales of {scales.dtype}, expected uint8")
    ends = blocks.shape[-1:] == (_MX_BYTES,) and len(blocks.shape) > 2
    if not ends or blocks.shape[:-1] != scales.shape:
        raise ValueError(
            f"blocks of shape {list(blocks.shape)} and scales of shape {list(scales.shape)},"
            f" expected [..., R, G, {_MX_BYTES}] and [..., R, G]"
        )
    shape = (*scales.shape[:-2], scales.shape[-1] * MX_GROUP, scales.shape[-2])
    return _hold(Nibbles("MXFP4", shape, blocks, scales, MX_GROUP, is_turned=True), dtype)


def unpack_int4(
    words: LazyTensor, scales: LazyTensor, said: LazyTensor, group: int, dtype: DType
) -> LazyTensor:
    """INT4 ``words`` int32 ``[R, ceil(C / 8)]`` times ``scales`` ``[R, C / group]``.

    ``said``: integers ``[2]``, which are R and C, and are read with the first weight. The result is
    ``[R, C]`` of ``dtype``. ValueError where a shape or a dtype is another one; reads nothing.
    """
    _require(dtype in CASTABLE, f"no cast from INT4 to {dtype}")
    _require(_is_plain(words, INT32), f"words of {words.dtype}, expected int32")
    floats = any(_is_plain(scales, known) for known in (BFLOAT16, FLOAT16, FLOAT32))
    _require(floats, f"scales of {scales.dtype}, expected floats of 16 or 32 bits")
    _require(
        any(_is_plain(said, known) for known in SHAPE_DTYPES) and said.shape == (2,),
        f"a shape that is {said.dtype} {list(said.shape)}, expected int32 or int64 [2]",
    )
    _require(group > 0 and group % _WORD == 0, f"groups of {group}, expected a multiple of {_WORD}")
    columns = scales.shape[-1] * group if scales.shape else 0
    if words.shape != (*scales.shape[:-1], columns // _WORD) or len(words.shape) != 2:
        raise ValueError(
            f"words of shape {list(words.shape)} and scales of shape {list(scales.shape)} by groups"
            f" of {group}, expected [R, N] and [R, {_WORD} N / {group}]"
        )
    shape = (words.shape[0], columns)
    return _hold(Nibbles("INT4", shape, words, scales, group, said), dtype)


def find_turned(weight: LazyTensor) -> Nibbles | None:
    """What all of ``weight`` is computed of, where that is turned; None where it is not."""
    computed = weight.chunks[0].region.computed if len(weight.chunks) == 1 else None
    if not isinstance(computed, Nibbles) or not computed.is_turned:
        return None
    region = weight.chunks[0].region
    is_whole = (region.offset, region.strides) == (0, make_strides(computed.shape))
    return computed if is_whole and weight.shape == computed.shape else None


def turn_back(nibbles: Nibbles, dtype: DType, first: int = 0, step: int = 1) -> LazyTensor:
    """Rows ``first``, ``first + step``, ... of a weight [E, R, C] that is turned, as they lie.

    ``step`` divides R.
    """
    codes, scales = nibbles.codes, nibbles.scales
    experts, rows, *rest = codes.shape
    if step > 1:
        codes = reshape(codes, (experts, rows // step, step, *rest)).select(2, first)
        scales = reshape(scales, (experts, rows // step, step, *rest[:-1])).select(2, first)
    shape = (experts, rows // step, nibbles.shape[1])
    plain = replace(nibbles, shape=shape, codes=codes, scales=scales, is_turned=False)
    return _hold(plain, dtype)


def _hold(nibbles: Nibbles, dtype: DType) -> LazyTensor:
    if 0 in nibbles.shape:
        return LazyTensor(nibbles.shape, dtype, FLOAT32, ())
    return hold(nibbles, dtype, nibbles.codes)


def _is_plain(tensor: LazyTensor, dtype: DType) -> bool:
    return (tensor.dtype, tensor.source_dtype) == (dtype, dtype)


def _require(holds: bool, said: str) -> None:
    if not holds:
        raise ValueError(said)
