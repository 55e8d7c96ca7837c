"""A number added to every element, whichever part of the tensor is read, and how it is rounded."""

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT32, FLOAT64
from ckpt_tool.tensors.offsets import add
from ckpt_tool.tensors.rounding import CastErrors
from tests.support.backed import backed, raw, same

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@given(data=st.data())
def test_any_part_of_it(folder, data):
    dtype = data.draw(st.sampled_from(DTYPES))
    values = data.draw(st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=9))
    tensor = torch.tensor(values).to(dtype)
    found = add(backed(folder / "any", tensor), -1.0)
    expected = (tensor.double() - 1).to(dtype)
    out, size = bytearray(found.nbytes), found.dtype.itemsize
    cuts = data.draw(st.lists(st.integers(0, found.numel)))
    with FileTable() as files:
        reader = BlockReader(files)
        for start, stop in pairwise(sorted({0, found.numel, *cuts})):
            reader.read(found, start, stop, memoryview(out)[start * size : stop * size])
    assert out == raw(expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_half_on_nothing_is_lost_on_the_way_and_back(folder, dtype):
    tensor = torch.linspace(0.5, 9.0, 300, dtype=torch.float64).to(dtype)
    there = add(backed(folder / "there", tensor), -1.0)
    assert same(add(backed(folder / "stored", there.read()), 1.0).read(), tensor)
    assert same(add(there, 1.0).read(), tensor)


def test_what_is_lost_is_known(folder):
    tensor = torch.tensor([1.0, 2.0**-10], dtype=torch.bfloat16)
    errors = CastErrors()
    found = add(backed(folder / "small", tensor), -1.0)
    with FileTable() as files:
        BlockReader(files, errors).read(found, 0, 2, memoryview(bytearray(4)))
    assert errors.listed() == (("float64", "bfloat16", 2.0**-10),)


def test_a_cast_that_was_pending_is_made_first(folder):
    tensor = torch.tensor([1.0 + 2.0**-9 + 2.0**-12])
    cast = backed(folder / "cast", tensor).to(BFLOAT16)
    assert same(add(cast, -1.0).read(), tensor.bfloat16() - 1)
    later = add(backed(folder / "later", tensor), -1.0).to(BFLOAT16)
    assert same(later.read(), (tensor.double() - 1).bfloat16())


def test_it_may_be_cast_to_another_dtype_and_stacked_with_others(folder):
    tensor = torch.tensor([1.5, 0.75], dtype=torch.bfloat16)
    found = add(backed(folder / "wide", tensor), 1.0)
    assert found.to(FLOAT32).read().tolist() == [2.5, 1.75]
    assert found.unsqueeze(0).narrow(1, 1, 1).read().tolist() == [[1.75]]


def test_what_is_no_vector_of_floats_is_refused(folder):
    for tensor in (torch.ones(2, 2), torch.ones(2, dtype=torch.int32)):
        with pytest.raises(ValueError, match="expected a vector of floats"):
            add(backed(folder / "other", tensor), 1.0)
    nothing = backed(folder / "nothing", torch.ones(0))
    assert add(nothing, 1.0) is nothing


@pytest.mark.parametrize("dtype", DTYPES)
def test_reports_are_told_what_was_added(folder, dtype):
    found = add(backed(folder / "told", torch.ones(3, dtype=dtype)), -1.0)
    if dtype == torch.float64:
        assert found.origin == found.dtype == FLOAT64
    else:
        assert (found.origin.name, found.origin.offset) == ("float64", -1.0)
        assert found.origin != FLOAT64
