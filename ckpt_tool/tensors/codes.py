"""Weights of four bits times their factors, computed a tile at a time, while it is in the cache.

The two numbers of a byte are looked up at once: as products that are bfloat16 already, where
factors have few values, else as numbers that are multiplied in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.tensors.casts import Caster
from ckpt_tool.tensors.chunks import Filler, Reader
from ckpt_tool.tensors.code_heads import make_table
from ckpt_tool.tensors.code_products import Products
from ckpt_tool.tensors.code_tables import PAIRS
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT32, DType
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.rounding import CastErrors
from ckpt_tool.tensors.scratch import Scratch

#: Numbers of a tile. One that is turned has so few columns that they stay in the cache, and rows of
#: an odd number of cache lines, lest elements below one another take each other's place.
_TILE, _TURNED_GROUPS = 1 << 18, 7
#: Bytes that are read ahead of a weight that is turned, and what all rows may take for that.
_AHEAD, _MOST = 8 << 20, 32 << 20

#: Products of no factor below this are infinite, in float32 and in bfloat16.
_SAFE = 2.0**120

Codes = NDArray[np.uint8]
Factors = NDArray[np.float32]


class Operands(NamedTuple):
    """What weights are made of: see :class:`~ckpt_tool.tensors.nibbles.Nibbles`."""

    kind: str
    codes: LazyTensor
    scales: LazyTensor
    group: int
    is_turned: bool
    over: LazyTensor | None
    is_divisor: bool


class _Tile(NamedTuple):
    """Bytes [rows, groups, n], factors [rows, groups]; which of their columns are ``wanted``.

    Factors are float32, or the bits that stand for them in a table.
    """

    codes: Codes
    factors: NDArray[Any]
    wanted: slice


class _Strip(NamedTuple):
    """Groups ``[first, last)`` of some rows: bytes [rows, groups, n], factors [rows, groups]."""

    rows: Box
    first: int
    last: int
    codes: Codes
    factors: NDArray[Any]


class NibbleFiller(Filler):
    """Multiplies the numbers of boxes with their factors; alone has its reader's memory."""

    def __init__(self, nibbles: Operands, reader: Reader) -> None:
        self._nibbles, self._reader = nibbles, reader
        self._caster, self._scratch = reader.keep(Caster), reader.keep(Scratch)
        dtype = nibbles.scales.dtype
        self._table = make_table(dtype, nibbles.over, reader, by=nibbles.is_divisor)
        self._strip: _Strip | None = None

    def fill(self, box: Box, out: memoryview) -> None:
        """Put the products of ``box``, row-major, into ``out``."""
        self._put(box, np.frombuffer(out, np.float32).reshape(box.sizes), FLOAT32, CastErrors())

    def fill_rounded(self, box: Box, out: memoryview, dtype: DType, errors: CastErrors) -> bool:
        """The same rounded to bfloat16; False, with nothing done, for another ``dtype``."""
        if dtype != BFLOAT16:
            return False
        self._put(box, np.frombuffer(out, dtype.carrier).reshape(box.sizes), dtype, errors)
        return True

    def _put(self, box: Box, out: NDArray[Any], dtype: DType, errors: CastErrors) -> None:
        for part, rows in self._cut(box, out):
            (column, columns), group = (part.offsets[-1], part.sizes[-1]), self._nibbles.group
            first, last = column // group, -(-(column + columns) // group)
            codes, scales = self._load(part, first, last)
            for at, groups in self._tiles(codes.shape[0], last - first):
                begin = (first + groups.start) * group - column
                left, right = (
                    max(begin, 0),
                    min(begin + (groups.stop - groups.start) * group, columns),
                )
                tile = _Tile(
                    codes[at, groups], scales[at, groups], slice(left - begin, right - begin)
                )
                self._fill(tile, rows[at, left:right], dtype, errors)

    def _cut(self, box: Box, out: NDArray[Any]) -> Iterator[tuple[Box, NDArray[Any]]]:
        """Boxes of the codes' rows, and where their products go: rows by columns."""
        if not self._nibbles.is_turned:
            yield box, out.reshape(-1, box.sizes[-1])
            return
        for index in np.ndindex(*box.sizes[:-2]):
            lead = tuple(at + each for at, each in zip(box.offsets, index, strict=False))
            ones = (1,) * len(lead)
            turned = Box((*lead, *box.offsets[:-3:-1]), (*ones, *box.sizes[:-3:-1]))
            yield turned, out[index].T

    def _tiles(self, rows: int, groups: int) -> Iterator[tuple[slice, slice]]:
        """Rows and groups of each tile."""
        wide = groups
        if self._nibbles.is_turned:
            wide = -(-groups // -(-groups // _TURNED_GROUPS))  # all about as many
        high = max(1, _TILE // (wide * self._nibbles.group))
        for left in range(0, groups, wide):
            for top in range(0, rows, high):
                yield slice(top, min(top + high, rows)), slice(left, min(left + wide, groups))

    def _fill(self, tile: _Tile, out: NDArray[Any], dtype: DType, errors: CastErrors) -> None:
        """Put the products of a tile into ``out``."""
        codes, scales, wanted = tile
        if dtype == BFLOAT16 and self._look_up(tile, out, errors):
            return
        factors = scales if self._table is None else self._table.factors[scales]
        pairs = self._scratch.array("pairs", codes.shape, np.uint64)
        np.take(PAIRS[self._nibbles.kind], codes, mode="wrap", out=pairs)
        values = pairs.view(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(values, factors[:, :, None], out=values)
        if not np.abs(factors).max() < _SAFE:
            given = np.isfinite(factors) if self._table is None else self._table.given[scales]
            made = ~np.isfinite(values) & given[:, :, None]
            if made.reshape(len(codes), -1)[:, wanted].any():
                self._reader.spoil()
        values = values.reshape(len(codes), -1)[:, wanted]
        if dtype == FLOAT32:
            out[...] = values
        else:
            self._round(values, out, dtype, errors)

    def _look_up(self, tile: _Tile, out: NDArray[Any], errors: CastErrors) -> bool:
        """Whether the products of a tile could be looked up as bfloat16, and are in ``out``."""
        codes, scales, wanted = tile
        names = self._nibbles.codes.dtype.name, BFLOAT16.name
        if self._table is None:
            return False
        products = self._reader.keep(Products)
        known = errors.largest_finite(*names)
        firsts = products.find(self._nibbles.kind, self._table, scales, known)
        if firsts is None:
            return False
        errors.learn(*names, 0.0)
        near = self._scratch.array("near", codes.shape, firsts.dtype)
        np.copyto(near, codes)
        near |= firsts.repeat(codes.shape[-1]).reshape(codes.shape)
        places = self._scratch.array("places", codes.shape, np.intp)
        np.copyto(places, near)
        if out.flags.c_contiguous and out.size == 2 * codes.size:
            whole = out.reshape(-1).view(np.uint32)
            products.words.take(places.reshape(-1), mode="wrap", out=whole)
            return True
        found = self._scratch.array("words", codes.shape, np.uint32)
        products.words.take(places, mode="wrap", out=found)
        out[...] = found.reshape(len(codes), -1).view(np.uint16)[:, wanted]
        return True

    def _round(self, values: Factors, out: NDArray[Any], dtype: DType, errors: CastErrors) -> None:
        names = self._nibbles.codes.dtype.name, dtype.name
        bits = np.ascontiguousarray(values).view(np.uint32).reshape(-1)
        is_run = out.flags.c_contiguous
        target = out if is_run else self._scratch.array("rounded", out.shape, np.uint16)
        known = errors.largest_finite(*names)
        error = self._caster.cast(bits, FLOAT32, target.reshape(-1), dtype, known)
        errors.learn(*names, error)
        if error == inf:
            self._reader.spoil()
        if not is_run:
            out[...] = target

    def _load(self, box: Box, first: int, last: int) -> tuple[Codes, NDArray[Any]]:
        """Groups ``[first, last)`` of the box's rows: bytes [rows, groups, n], and factors.

        Factors [rows, groups] are as the file has them. Where columns are asked for one
        after the other, those that come next are read too: a row at a time would take calls.
        """
        rows, among, each = Box(box.offsets[:-1], box.sizes[:-1]), slice(None), 0
        if self._nibbles.is_turned:
            each = self._nibbles.scales.shape[-2] * (self._nibbles.group // 2 + 1)
        if 0 < each * (last - first) <= _MOST:  # a block of columns begins and ends amid one
            among = slice(rows.offsets[-1], rows.offsets[-1] + rows.sizes[-1])
            whole = self._nibbles.scales.shape[-2]
            rows = Box((*rows.offsets[:-1], 0), (*rows.sizes[:-1], whole))
        kept = self._strip
        if kept is None or kept.rows != rows or not kept.first <= first <= last <= kept.last:
            more = first + _AHEAD // each if each else 0
            end = min(self._nibbles.scales.shape[-1], max(last, more))
            self._strip = None  # lies in memory that is read into
            kept = self._strip = self._read_strip(rows, first, end)
        part = np.s_[among, first - kept.first : last - kept.first]
        return kept.codes[part], kept.factors[part]

    def _read_strip(self, rows: Box, first: int, last: int) -> _Strip:
        codes, per_group = self._nibbles.codes, self._nibbles.group // 2
        each = 1  # elements, or rows of them, in a group
        if len(codes.shape) == len(self._nibbles.scales.shape):
            each = per_group // codes.dtype.itemsize
        raw = self._read("codes", _cut(codes, rows, first * each, last * each))
        part = _cut(self._nibbles.scales, rows, first, last)
        kind = np.float32 if self._table is None else self._table.carrier
        factors = self._read("scales", part).view(kind)
        shape = (-1, last - first)
        return _Strip(rows, first, last, raw.reshape(*shape, per_group), factors.reshape(shape))

    def _read(self, name: str, tensor: LazyTensor) -> Codes:
        raw = self._scratch.array(name, (tensor.nbytes,), np.uint8)
        self._reader.read(tensor, 0, tensor.numel, raw.data)
        return raw


def _cut(tensor: LazyTensor, rows: Box, first: int, last: int) -> LazyTensor:
    """Rows of a tensor, of elements ``[first, last)`` of the dimension behind those of rows."""
    for dim, (at, size) in enumerate(zip(rows.offsets, rows.sizes, strict=True)):
        tensor = tensor.narrow(dim, at, size)
    return tensor.narrow(len(rows.sizes), first, last - first)
