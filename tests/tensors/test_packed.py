"""Chunks of tensors that are cut alike: the same as an object for each."""

from array import array
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.tensors.chunks import Chunk, Region
from ckpt_tool.tensors.dtypes import BY_NAME
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.packed import Frame, PackedChunks

FLOAT = BY_NAME["float32"]


def chunks(rows: list[int], offsets: list[int]) -> tuple[Chunk, ...]:
    """Rows of a matrix of three columns, each block in a file of its own."""
    starts = accumulate(rows, initial=0)
    return tuple(
        Chunk(Box((start, 0), (size, 3)), Region(f"rank {at}", offset, (3, 1)))
        for at, (start, size, offset) in enumerate(zip(starts, rows, offsets, strict=False))
    )


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
def test_a_tensor_of_packed_chunks_is_the_tensor_of_its_chunks(rows, data):
    offsets = data.draw(st.lists(st.integers(0, 999), min_size=len(rows), max_size=len(rows)))
    plain = chunks(rows, offsets)
    packed = PackedChunks(Frame(chunks(rows, [0] * len(rows))), array("Q", offsets))
    assert packed == plain
    assert plain == packed
    assert hash(packed) == hash(plain)
    shape = (sum(rows), 3)
    one = LazyTensor(shape, FLOAT, FLOAT, packed)
    other = LazyTensor(shape, FLOAT, FLOAT, plain)
    assert one == other
    start = data.draw(st.integers(0, one.numel - 1))
    stop = data.draw(st.integers(start + 1, one.numel))
    assert list(one.pieces(start, stop)) == list(other.pieces(start, stop))
    first = data.draw(st.integers(0, shape[0] - 1))
    assert one.narrow(0, first, 1) == other.narrow(0, first, 1)
    assert one.transpose(0, 1) == other.transpose(0, 1)


def test_packed_chunks_differ_where_an_offset_does():
    frame = Frame(chunks([1, 2], [0, 0]))
    one, other = (PackedChunks(frame, array("Q", [5, at])) for at in (6, 7))
    assert one != other
    assert one[1].region.offset == 6
    assert one[-1] == one[1]
    assert one[:1] == (one[0],)
    with pytest.raises(IndexError):
        one[2]


def test_a_scalar_has_no_rows():
    frame = Frame((Chunk(Box((), ()), Region("rank 0", 0, ())),))
    packed = PackedChunks(frame, array("Q", [40]))
    tensor = LazyTensor((), FLOAT, FLOAT, packed)
    assert (packed.starts, packed.reach) == ((), 0)
    assert [(piece.at, piece.region.offset) for piece in tensor.pieces(0, 1)] == [(0, 40)]
