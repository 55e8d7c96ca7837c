"""Ones that no file has, whichever part of them is read."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import BY_NAME
from ckpt_tool.tensors.lazy import cat
from ckpt_tool.tensors.ones import make_ones
from ckpt_tool.tensors.rounding import CastErrors
from tests.support.backed import backed, distinct, raw, same

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@given(data=st.data())
def test_any_part_of_them(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    found = make_ones(shape, BY_NAME[str(dtype).removeprefix("torch.")])
    out, size = bytearray(found.nbytes), found.dtype.itemsize
    cuts = data.draw(st.lists(st.integers(0, found.numel)))
    errors = CastErrors()
    with FileTable() as files:
        reader = BlockReader(files, errors)
        for start, stop in pairwise(sorted({0, found.numel, *cuts})):
            reader.read(found, start, stop, memoryview(out)[start * size : stop * size])
    assert out == raw(torch.ones(shape, dtype=dtype))
    assert errors.listed() == ()  # they are no cast


def test_they_go_together_with_what_a_file_has(tmp_path):
    tensor = distinct((3,))
    joined = cat([backed(tmp_path / "a", tensor), make_ones((2,), BY_NAME["float32"])], 0)
    assert same(joined.read(), torch.cat([tensor, torch.ones(2)]))
    assert make_ones((0, 2), BY_NAME["float32"]).shape == (0, 2)


def test_dtypes_that_no_norm_has_are_refused():
    with pytest.raises(ValueError, match="ones of int64, expected float64"):
        make_ones((2,), BY_NAME["int64"])
