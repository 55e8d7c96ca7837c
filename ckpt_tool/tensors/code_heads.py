"""What is read of a weight of four bits before its first number: its shape, the factor of all."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.common.errors import FormatError
from ckpt_tool.tensors.chunks import Chunked, Reader
from ckpt_tool.tensors.code_tables import E4M3, POWERS
from ckpt_tool.tensors.geometry import Shape


class Table(NamedTuple):
    """``factors`` of groups by the bytes that stand for them; None where the file has floats.

    ``given``: which of them are made of finite numbers, where that is not said by themselves.
    """

    factors: NDArray[np.float32] | None
    given: NDArray[np.bool_] | None = None


def make_table(kind: str, over: Chunked | None, reader: Reader, *, by: bool) -> Table:
    """The factors of a weight.

    Of NVFP4 they are numbers of fp8 times ``over``, one float32, or ``by`` it; rounded to float32.
    """
    if over is None:
        return Table(POWERS if kind == "MXFP4" else None)
    one = np.empty(1, np.float32)
    reader.read(over, 0, 1, one.data.cast("B"))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return Table(E4M3 / one if by else E4M3 * one, np.isfinite(E4M3) & np.isfinite(one))


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
