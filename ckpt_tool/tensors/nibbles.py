"""Weights of four bits with a factor for each group of them along a row, as one tensor.

Two of them are in a byte, the first in its lower half; a group is next to the other in its row:

- MXFP4 (OCP Microscaling Formats 1.0): numbers of one sign, two exponent and one mantissa bits in
  groups of 32, whose factor is a byte: a power of two, 127 more than its exponent; 255 is NaN.
- NVFP4: the same numbers in groups of 16, whose factor is fp8 (e4m3), times or by one float32 that
  all of a weight have in common: the factor is rounded to float32, and so is the product.
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
from ckpt_tool.tensors.fp8 import EXPONENT, FLOAT8
from ckpt_tool.tensors.geometry import Shape, make_strides
from ckpt_tool.tensors.lazy import LazyTensor, hold
from ckpt_tool.tensors.reshaped import reshape

Kind = Literal["MXFP4", "NVFP4", "INT4"]

INT8, INT32, INT64 = BY_NAME["int8"], BY_NAME["int32"], BY_NAME["int64"]
#: What bytes of two numbers of FP4 are called.
PAIRS_OF_FP4 = frozenset({INT8, UINT8, BY_NAME["float4_e2m1fn_x2"]})
#: What the shape of a weight of INT4 is written in: by Kimi-K2-Thinking, by compressed-tensors.
SHAPE_DTYPES = (INT32, INT64)
#: Numbers that have one factor in MXFP4, and the bytes that they take; those of NVFP4.
MX_GROUP, _MX_BYTES, _NV_GROUP = 32, 16, 16
#: Numbers in a word of INT4.
_WORD = 8


@dataclass(frozen=True, slots=True, eq=False)
class Nibbles:
    """What a weight [..., R, C] is made of: ``codes`` [..., R, N], and ``scales`` [..., R, G].

    Of MXFP4 ``codes`` have one dimension more, of the bytes of a group. ``group`` numbers of a row,
    which are whole elements, have a factor. ``said``: the shape as the file has it, read to be
    compared before the first weight is. ``is_turned``: the weight is [..., C, R] then. ``over``:
    what all factors are multiplied with, or divided by where ``is_divisor``.
    """

    kind: Kind
    shape: Shape
    codes: LazyTensor
    scales: LazyTensor
    group: int
    said: LazyTensor | None = None
    is_turned: bool = False
    over: LazyTensor | None = None
    is_divisor: bool = False

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
        """Numbers, factors and, where these are in a file, the shape and the factor of all."""
        others = (each for each in (self.said, self.over) if each is not None)
        return (self.codes, self.scales, *others)

    @property
    def recipe(self) -> str:
        """What shares a factor."""
        over = "" if self.over is None else (" by" if self.is_divisor else " times") + " one of all"
        return f"{self.kind} * scales of {self.group}{over}, as {list(self.shape)}"

    def open(self, reader: Reader) -> Filler:
        """What multiplies. FormatError where the file says another shape."""
        from ckpt_tool.tensors.code_heads import check_shape
        from ckpt_tool.tensors.codes import NibbleFiller, Operands

        if self.said is not None:
            check_shape(self.said, self.shape, reader)
        parts = (self.kind, self.codes, self.scales, self.group, self.is_turned)
        return NibbleFiller(Operands(*parts, self.over, self.is_divisor), reader)


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


def unpack_fp4(codes: LazyTensor, scales: LazyTensor, dtype: DType) -> LazyTensor:
    """FP4 ``codes`` of a byte each for two, ``[..., R, C / 2]``, times their ``scales``.

    ``scales`` ``[..., R, C / 32]`` are exponents of two in a byte (float8_e8m0fnu or uint8), as of
    MXFP4. The result is ``[..., R, C]`` of ``dtype``. ValueError where a shape or a dtype is
    another one; reads nothing.
    """
    _require(dtype in CASTABLE, f"no cast from FP4 to {dtype}")
    is_power = any(_is_plain(scales, known) for known in (EXPONENT, UINT8))
    _require(is_power, f"scales of {scales.dtype}, expected {EXPONENT} or uint8")
    shape = _check_pairs(codes, scales.shape, MX_GROUP)
    return _hold(Nibbles("MXFP4", shape, codes, scales, MX_GROUP), dtype)


def unpack_nvfp4(
    codes: LazyTensor, scales: LazyTensor, over: LazyTensor, dtype: DType, *, is_divisor: bool
) -> LazyTensor:
    """The same in groups of 16 with ``scales`` float8_e4m3fn, times ``over``, or by it.

    ``over``: one float32 for all of the weight, ``[]`` or ``[1]``. Divided by in files of
    compressed-tensors (``weight_global_scale``), multiplied with in ModelOpt's
    (``weight_scale_2``).
    """
    _require(dtype in CASTABLE, f"no cast from NVFP4 to {dtype}")
    _require(_is_plain(scales, FLOAT8), f"scales of {scales.dtype}, expected {FLOAT8}")
    _require(
        _is_plain(over, FLOAT32) and over.shape in ((), (1,)),
        f"a scale of all that is {over.dtype} {list(over.shape)}, expected one float32",
    )
    shape = _check_pairs(codes, scales.shape, _NV_GROUP)
    parts = Nibbles("NVFP4", shape, codes, scales, _NV_GROUP, over=over, is_divisor=is_divisor)
    return _hold(parts, dtype)


def _check_pairs(codes: LazyTensor, scales: Shape, group: int) -> Shape:
    """The shape of a weight with two numbers in each byte of ``codes``, ``group`` with a scale."""
    plain = codes.dtype in PAIRS_OF_FP4 and codes.dtype == codes.source_dtype
    _require(plain, f"codes of {codes.dtype}, expected two numbers in each byte")
    fits = len(scales) > 1 and codes.shape == (*scales[:-1], scales[-1] * group // 2)
    if not fits:
        raise ValueError(
            f"codes of shape {list(codes.shape)} and scales of shape {list(scales)} by groups of"
            f" {group}, expected [..., R, C / 2] and [..., R, C / {group}]"
        )
    return (*scales[:-1], scales[-1] * group)


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
