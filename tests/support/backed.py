"""Lazy tensors over real files, made from torch tensors that the tests compare with."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from hypothesis import strategies as st

from ckpt_tool.tensors.chunks import Chunk, Region
from ckpt_tool.tensors.dtypes import BY_NAME, DType
from ckpt_tool.tensors.geometry import Box, make_strides
from ckpt_tool.tensors.lazy import LazyTensor


def dtype_of(tensor: torch.Tensor) -> DType:
    return BY_NAME[str(tensor.dtype).removeprefix("torch.")]


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of the row-major form."""
    plain = tensor.detach().clone(memory_format=torch.contiguous_format)
    return bytes(plain.flatten().view(torch.uint8).numpy())


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal in shape, dtype and every bit."""
    return (left.shape, left.dtype) == (right.shape, right.dtype) and raw(left) == raw(right)


def distinct(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor whose elements all differ, bit for bit (as far as the dtype has that many)."""
    size = dtype.itemsize
    unsigned = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    start = 0x3F800001 if size == 4 else 1
    values = torch.arange(start, start + prod(shape), dtype=torch.int64)
    return values.to(unsigned).view(dtype).reshape(tuple(shape))


def backed(
    path: Path,
    tensor: torch.Tensor,
    boxes: Sequence[Box] | None = None,
    order: Sequence[int] | None = None,
    gap: int = 0,
) -> LazyTensor:
    """Write `tensor` to `path`, one piece per box, and describe it lazily.

    `order` is the order of dimensions on disk (last is fastest), `gap` the number of foreign
    elements after each element, so that the strides on disk are sparse.
    """
    shape = tuple(tensor.shape)
    boxes = [Box((0,) * len(shape), shape)] if boxes is None else boxes
    order = list(range(len(shape))) if order is None else list(order)
    chunks = []
    content = bytearray(b"\xaa" * 13)  # offsets in real files are not aligned either
    size = tensor.element_size()
    for box in boxes:
        slices = tuple(slice(o, o + s) for o, s in zip(box.offsets, box.sizes, strict=True))
        piece = tensor[slices].permute(order)
        steps = make_strides(tuple(piece.shape))
        strides = tuple(steps[order.index(dim)] * (gap + 1) for dim in range(len(shape)))
        if box.volume:
            chunks.append(Chunk(box, Region(str(path), len(content), strides)))
        data = raw(piece)
        for at in range(0, len(data), size):
            content += data[at : at + size] + b"\xbb" * (gap * size)
    path.write_bytes(content)
    dtype = dtype_of(tensor)
    return LazyTensor(shape, dtype, dtype, tuple(chunks))


@st.composite
def tilings(draw: st.DrawFn, shape: tuple[int, ...], cuts: int = 4) -> list[Box]:
    """Boxes that tile `shape`."""
    boxes = [Box((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, cuts if shape else 0))):
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        dim = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, box.sizes[dim]))
        low, high, moved = list(box.sizes), list(box.sizes), list(box.offsets)
        low[dim], high[dim], moved[dim] = at, box.sizes[dim] - at, box.offsets[dim] + at
        boxes += [Box(box.offsets, tuple(low)), Box(tuple(moved), tuple(high))]
    return boxes


@st.composite
def layouts(draw: st.DrawFn, max_dims: int = 4, max_size: int = 5) -> dict:
    """Arguments of `backed` but the path: a tensor and how it lies on disk."""
    low = draw(st.sampled_from([0, 1, 1, 1]))
    shape = tuple(draw(st.lists(st.integers(low, max_size), max_size=max_dims)))
    dtype = draw(st.sampled_from([torch.float32, torch.int64, torch.bfloat16, torch.uint8]))
    if prod(shape) > 255:
        dtype = torch.float32
    return {
        "tensor": distinct(shape, dtype),
        "boxes": draw(tilings(shape)),
        "order": draw(st.permutations(range(len(shape)))),
        "gap": draw(st.sampled_from([0, 0, 1, 5])),
    }
