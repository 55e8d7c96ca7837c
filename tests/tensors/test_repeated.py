"""Rows that are there several times, whichever part of the tensor is read."""

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT32
from ckpt_tool.tensors.repeated import repeat
from tests.support.backed import backed, raw, same


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@given(data=st.data())
def test_any_part_of_it(folder, data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    times = data.draw(st.integers(1, 5))
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.int32).reshape(shape)
    found, expected = repeat(backed(folder / "any", tensor), times), tensor
    expected = tensor.repeat_interleave(times, 0)
    for dim in data.draw(st.lists(st.integers(0, len(shape) - 1), max_size=2)):
        start = data.draw(st.integers(0, found.shape[dim] - 1))
        length = data.draw(st.integers(1, found.shape[dim] - start))
        found, expected = found.narrow(dim, start, length), expected.narrow(dim, start, length)
    if len(shape) > 1 and data.draw(st.booleans()):
        found, expected = found.transpose(0, 1), expected.transpose(0, 1)
    out = bytearray(found.nbytes)
    cuts = data.draw(st.lists(st.integers(0, found.numel)))
    with FileTable() as files:
        reader = BlockReader(files)
        for start, stop in pairwise(sorted({0, found.numel, *cuts})):
            reader.read(found, start, stop, memoryview(out)[start * 4 : stop * 4])
    assert out == raw(expected.contiguous())


def test_it_is_cast_once(folder):
    tensor = torch.tensor([[1.0, 1 + 2.0**-9], [3.0, 4.0]])
    found = repeat(backed(folder / "cast", tensor).to(BFLOAT16), 2)
    assert same(found.read(), tensor.bfloat16().repeat_interleave(2, 0))
    assert same(repeat(found, 2).read(), tensor.bfloat16().repeat_interleave(4, 0))
    assert found.origin == FLOAT32


def test_nothing_is_left_nothing(folder):
    assert repeat(backed(folder / "empty", torch.zeros(3, 0)), 2).shape == (6, 0)


@pytest.mark.parametrize(("shape", "times"), [((), 2), ((3, 2), 0)])
def test_what_has_no_rows_is_refused(folder, shape, times):
    with pytest.raises(ValueError, match="no rows"):
        repeat(backed(folder / "none", torch.zeros(shape)), times)
