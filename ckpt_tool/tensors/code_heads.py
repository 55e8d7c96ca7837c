"""What is read of a weight of four bits before its first number: its shape, the factor of all."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.common.errors import FormatError
from ckpt_tool.tensors.casts import Caster
from ckpt_tool.tensors.chunks import Chunked, Reader
from ckpt_tool.tensors.code_tables import E4M3, POWERS
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT16, FLOAT32, DType
from ckpt_tool.tensors.geometry import Shape


class Table(NamedTuple):
    """``factors`` of groups by the 8 or 16 bits that stand for them.

    ``given``: which of them are made of finite numbers.
    """

    factors: NDArray[np.float32]
    given: NDArray[np.bool_]

    @property
    def carrier(self) -> str:
        """What the bits are read as."""
        return "u1" if len(self.factors) <= 256 else "<u2"


def make_table(scales: DType, over: Chunked | None, reader: Reader, *, by: bool) -> Table | None:
    """The factors that ``scales`` of this dtype stand for; None where these are float32.

    Of NVFP4 they are numbers of fp8 times ``over``, one float32, or ``by`` it; rounded to float32.
    """
    if over is None:
        return _table_of(scales)
    one = np.empty(1, np.float32)
    reader.read(over, 0, 1, one.data.cast("B"))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return Table(E4M3 / one if by else E4M3 * one, np.isfinite(E4M3) & np.isfinite(one))


@cache
def _table_of(scales: DType) -> Table | None:
    """The same table each time: whoever has made something of it knows it again."""
    if scales.itemsize > 2:
        return None
    factors = POWERS
    if scales in (BFLOAT16, FLOAT16):
        every = np.arange(1 << 16).astype("<u2").data.cast("B")
        factors = np.empty(1 << 16, np.float32)
        Caster().cast_bytes(every, scales, factors.data.cast("B"), FLOAT32, 0.0)
    return Table(factors, np.isfinite(factors))


def check_shape(said: Chunked, shape: Shape, reader: Reader) -> None:
    """FormatError where a file says another shape of a weight than its codes and scales have."""
    found = np.empty(prod(said.shape), said.dtype.name)
    reader.read(said, 0, len(found), found.data.cast("B"))
    if tuple(found.tolist()) != shape:
        path = said.chunks[0].region.path
        raise FormatError(
            f"a packed weight of shape {list(shape)}, and its weight_shape says {found.tolist()}",
            path=path,
        )
