"""Every n-th column of a matrix, whichever part of it is read."""

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.tensors import columns
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.columns import take_columns
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT32
from tests.support.backed import backed, distinct, raw, same, tilings


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def test_by_hand(folder):
    matrix = backed(folder / "hand", torch.arange(12.0).reshape(2, 6))
    assert take_columns(matrix, 1, 3).read().tolist() == [[1.0, 4.0], [7.0, 10.0]]
    assert take_columns(matrix, 0, 1) is matrix


@given(data=st.data())
def test_any_part_of_it(folder, data):
    rows, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 9))
    first, step = data.draw(st.integers(0, width - 1)), data.draw(st.integers(1, 4))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    tensor = distinct((rows, width), dtype)
    order = data.draw(st.permutations([0, 1]))
    matrix = backed(folder / "any", tensor, data.draw(tilings((rows, width))), order)
    found, expected = take_columns(matrix, first, step), tensor[:, first::step]
    if data.draw(st.booleans()):
        found, expected = found.transpose(0, 1), expected.T
    out, size = bytearray(found.nbytes), found.dtype.itemsize
    cuts = data.draw(st.lists(st.integers(0, found.numel)))
    before, columns.STEP = columns.STEP, data.draw(st.sampled_from([1, 64, columns.STEP]))
    try:
        with FileTable() as files:
            reader = BlockReader(files)
            for start, stop in pairwise(sorted({0, found.numel, *cuts})):
                reader.read(found, start, stop, memoryview(out)[start * size : stop * size])
    finally:
        columns.STEP = before
    assert bytes(out) == raw(expected)


def test_they_are_cast_as_the_matrix_is(folder):
    tensor = torch.randn(5, 8)
    found = take_columns(backed(folder / "cast", tensor), 3, 2)
    assert same(found.to(BFLOAT16).read(), tensor[:, 3::2].bfloat16())
    assert (found.dtype, found.origin) == (FLOAT32, FLOAT32)


@pytest.mark.parametrize(("shape", "first", "step"), [((4,), 0, 2), ((2, 3), 3, 1), ((2, 3), 0, 0)])
def test_columns_that_are_not_there(folder, shape, first, step):
    matrix = backed(folder / "wrong", torch.zeros(shape))
    with pytest.raises(ValueError, match="columns"):
        take_columns(matrix, first, step)
