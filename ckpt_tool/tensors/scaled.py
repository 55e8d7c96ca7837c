"""Block-scaled fp8: a matrix of one-byte weights and a small matrix of factors, as one tensor.

The weight ``[r, c]`` is ``float32(fp8[r, c]) * scales[r // rows, c // columns]`` in float32,
rounded once to the dtype asked for. Here is only where everything lies;
:mod:`ckpt_tool.tensors.fp8` computes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ckpt_tool.tensors.dtypes import BFLOAT16, CASTABLE, FLOAT32, DType
from ckpt_tool.tensors.geometry import Box, Shape, contiguous_strides
from ckpt_tool.tensors.lazy import FLOAT8, Chunk, LazyTensor, Region, Scales


class Piece(NamedTuple):
    """A block of a quantised matrix: ``sizes`` (rows, columns) from ``row`` and ``column`` on.

    ``strides`` (elements) say how its rows and columns lie in the tensor that is read.
    """

    scales: Scales
    row: int
    column: int
    sizes: Shape
    strides: Shape


def scaled(
    weight: LazyTensor, scales: LazyTensor, block: tuple[int, int], dtype: DType
) -> LazyTensor:
    """``weight``, float8_e4m3fn ``[R, C]``, times its ``scales``, as a tensor of ``dtype``.

    ``scales`` are float32 or bfloat16 ``[ceil(R / rows), ceil(C / columns)]`` with ``block`` =
    ``(rows, columns)``. Both tensors must be whole and row-major in one file, as safetensors has
    them. ValueError where a shape, a dtype or the layout is another one; reads nothing.
    """
    _check_dtypes(weight, scales, dtype)
    _check_shapes(weight.shape, scales.shape, block)
    if not weight.numel:
        return replace(weight, dtype=dtype)
    region, factors = _only_region("weight", weight), _only_region("scales", scales)
    found = Scales(
        start=region.offset,
        columns=weight.shape[1],
        block=block,
        path=factors.path,
        offset=factors.offset,
        dtype=scales.dtype,
    )
    chunk = Chunk(weight.chunks[0].box, region._replace(scales=found))
    return replace(weight, dtype=dtype, chunks=(chunk,))


def piece_of(region: Region, sizes: Shape, strides: Shape) -> Piece:
    """The piece that is a region of ``sizes`` with scales; ``strides`` are those in the tensor.

    A dimension of the region runs over rows where its step in the file is a row, else over
    columns; dimensions of size 1 over neither.
    """
    scales = region.scales
    assert scales is not None, "a scaled tensor has scales in each chunk"
    row, column = divmod(region.offset - scales.start, scales.columns)
    shape, steps = [1, 1], [0, 0]
    for size, in_file, stride in zip(sizes, region.strides, strides, strict=True):
        if size > 1:
            dim = 0 if in_file == scales.columns else 1
            shape[dim], steps[dim] = size, stride
    return Piece(scales, row, column, tuple(shape), tuple(steps))


def _check_dtypes(weight: LazyTensor, scales: LazyTensor, dtype: DType) -> None:
    if (weight.dtype, weight.source_dtype) != (FLOAT8, FLOAT8):
        raise ValueError(f"a weight of {weight.dtype}, expected {FLOAT8} without scales")
    if scales.dtype not in (FLOAT32, BFLOAT16) or scales.dtype != scales.source_dtype:
        raise ValueError(f"scales of {scales.dtype}, expected {FLOAT32} or {BFLOAT16} on disk")
    if dtype not in CASTABLE:
        raise ValueError(f"no cast from {FLOAT8} with scales to {dtype}")


def _check_shapes(weight: Shape, scales: Shape, block: tuple[int, int]) -> None:
    if len(weight) != 2:
        raise ValueError(f"a weight of shape {list(weight)}, expected a matrix")
    if min(block) < 1:
        raise ValueError(f"blocks of {list(block)}, expected rows and columns")
    expected = tuple(-(-size // step) for size, step in zip(weight, block, strict=True))
    if scales != expected:
        raise ValueError(
            f"scales of shape {list(scales)} for a weight of shape {list(weight)} in blocks of"
            f" {list(block)}, expected {list(expected)}"
        )


def _only_region(what: str, tensor: LazyTensor) -> Region:
    """The region of a tensor that is one row-major run of a file; ValueError if it is not."""
    whole = Box((0,) * len(tensor.shape), tensor.shape)
    if [chunk.box for chunk in tensor.chunks] == [whole]:
        region = tensor.chunks[0].region
        if region.strides == contiguous_strides(tensor.shape):
            return region
    raise ValueError(f"{what} of shape {list(tensor.shape)}: not one row-major run of a file")
