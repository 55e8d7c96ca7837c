"""Blocks of larger tensors, and the pieces they are cut into."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.tensors.dtypes import BFLOAT16, BY_NAME
from ckpt_tool.tensors.geometry import Box, check_coverage
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.tiled import Block, TiledTensor
from tests.support.backed import backed, distinct, same


def block(path: Path, offsets, shape, dtype=torch.uint8) -> Block:
    return Block(offsets, backed(path / "t", distinct(shape, dtype)))


def spans(found: Block, limit: int) -> list[tuple[int, int]]:
    """Start and number of rows of each piece."""
    lead = len(found.offsets) - len(found.tensor.shape)
    return [(p.box.offsets[lead], p.box.sizes[lead]) for p in found.pieces(limit)]


def test_a_block_may_lack_leading_dimensions(tmp_path):
    assert block(tmp_path, (4, 0), (3, 2)).box == Box((4, 0), (3, 2))
    assert block(tmp_path, (7, 1, 4, 0), (3, 2)).box == Box((7, 1, 4, 0), (1, 1, 3, 2))
    assert block(tmp_path, (7,), ()).box == Box((7,), (1,))
    assert block(tmp_path, (), ()).box == Box((), ())


CUTS = {
    "it fits": ((8, 2), 16, [(0, 8)]),
    "a byte too many": ((8, 2), 15, [(0, 4), (4, 4)]),
    "halves": ((8, 2), 8, [(0, 4), (4, 4)]),
    "three would do, four it is": ((8, 2), 6, [(0, 2), (2, 2), (4, 2), (6, 2)]),
    "the last is shorter": ((5, 2), 4, [(0, 2), (2, 2), (4, 1)]),
    "rows are not cut": ((3, 9), 4, [(0, 1), (1, 1), (2, 1)]),
    "one row": ((1, 9), 4, [(0, 1)]),
    "one dimension": ((4,), 2, [(0, 2), (2, 2)]),
    "no rows": ((0, 4), 1, [(0, 0)]),
    "no columns": ((4, 0), 1, [(0, 4)]),
}


@pytest.mark.parametrize(("shape", "limit", "expected"), CUTS.values(), ids=CUTS.keys())
def test_pieces_by_hand(tmp_path, shape, limit, expected):
    offsets = (10,) + (0,) * (len(shape) - 1)
    found = spans(block(tmp_path, offsets, shape), limit)
    assert [(start - 10, rows) for start, rows in found] == expected


def test_pieces_of_a_block_without_its_leading_dimensions(tmp_path):
    found = block(tmp_path, (7, 1, 4, 5), (4, 2))
    assert [piece.box for piece in found.pieces(4)] == [
        Box((7, 1, 4, 5), (1, 1, 2, 2)),
        Box((7, 1, 6, 5), (1, 1, 2, 2)),
    ]
    assert [piece.offsets for piece in block(tmp_path, (7,), ()).pieces(1)] == [(7,)]


def test_an_element_is_not_cut_whatever_the_limit(tmp_path):
    found = block(tmp_path, (), (), torch.float32)
    assert list(found.pieces(1)) == [found]


def test_size_is_that_of_the_dtype_as_written(tmp_path):
    whole = block(tmp_path, (0, 0), (4, 2), torch.float32)
    half = Block(whole.offsets, whole.tensor.to(BFLOAT16))
    assert spans(whole, 16) == [(0, 2), (2, 2)]
    assert spans(half, 16) == [(0, 4)]


def without_data(shape: tuple[int, ...]) -> LazyTensor:
    return LazyTensor(shape, BY_NAME["uint8"], BY_NAME["uint8"], ())


shapes = st.tuples(st.integers(0, 40), st.integers(0, 5))


@given(shapes, st.integers(1, 50))
def test_pieces_tile_the_block_in_order(shape, limit):
    whole = Block((3, 0), without_data(shape))
    boxes = [piece.box for piece in whole.pieces(limit)]
    assert boxes == sorted(boxes)
    moved = [Box((box.offsets[0] - 3, box.offsets[1]), box.sizes) for box in boxes]
    assert check_coverage(shape, moved)
    assert all(box.volume for box in boxes) or len(boxes) == 1


@given(st.integers(0, 6), st.integers(0, 6), st.integers(1, 6))
def test_rows_that_a_power_of_two_divides_are_cut_into_one(scale, cuts, columns):
    rows = 1 << max(scale, cuts)
    limit = (rows >> cuts) * columns
    pieces = list(Block((0, 0), without_data((rows, columns))).pieces(limit))
    assert len(pieces) == 1 << cuts
    assert {piece.tensor.nbytes for piece in pieces} == {limit}


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 10))
def test_pieces_of_whole_rows_keep_to_the_limit(rows, columns, allowed):
    limit = allowed * columns
    found = Block((0, 0), without_data((rows, columns))).pieces(limit)
    assert max(piece.tensor.nbytes for piece in found) <= limit


def test_pieces_keep_to_a_limit_that_is_no_whole_number_of_rows():
    found = Block((0, 0), without_data((9, 2))).pieces(5)
    assert max(piece.tensor.nbytes for piece in found) <= 5


def test_pieces_hold_their_elements(tmp_path):
    tensor = distinct((10, 3))
    found = Block((0, 0), backed(tmp_path / "t", tensor)).pieces(36)
    assert same(torch.cat([piece.tensor.read() for piece in found]), tensor)


def test_size_and_dtype_of_a_sharded_tensor(tmp_path):
    first = block(tmp_path, (0, 0), (3, 2), torch.float32)
    second = Block((3, 0), backed(tmp_path / "u", distinct((1, 2))))
    whole = TiledTensor((4, 2), (first, second), ("a", "b"))
    assert (whole.nbytes, whole.dtype) == (32, BY_NAME["float32"])
