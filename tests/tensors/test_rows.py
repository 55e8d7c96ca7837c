"""Rows of a tensor in place of those of another one, of the same dtype or not."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT32
from ckpt_tool.tensors.rows import replace_rows
from tests.support.backed import backed, distinct, same, tilings

WIDE = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@given(data=st.data())
def test_it_is_what_index_copy_makes(folder, data):
    shape = (data.draw(st.integers(1, 9)), *data.draw(st.lists(st.integers(1, 4), max_size=2)))
    rows = data.draw(st.lists(st.integers(0, shape[0] - 1), unique=True, min_size=1))
    base, other = (data.draw(st.sampled_from(WIDE)) for _ in range(2))
    tensor = torch.arange(1.0, 1.0 + torch.Size(shape).numel()).reshape(shape).to(base)
    by = (-torch.rand(len(rows), *shape[1:], dtype=torch.float64)).to(other)
    found = replace_rows(
        backed(folder / "tensor", tensor, data.draw(tilings(shape))),
        rows,
        backed(folder / "by", by, data.draw(tilings(tuple(by.shape)))),
    )
    expected = tensor.index_copy(0, torch.tensor(rows), by.to(base))
    assert same(found.read(), expected)
    if len(shape) == 2 and found.is_computed:
        assert same(found.transpose(0, 1).read(), expected.T)
        assert same(found.narrow(1, 0, 1).read(), expected[:, :1])


def test_of_one_dtype_bytes_are_moved_and_nothing_is_computed(folder):
    tensor, by = distinct((4, 3)), -distinct((2, 3))
    found = replace_rows(backed(folder / "a", tensor), [3, 0], backed(folder / "b", by))
    assert not found.is_computed
    assert same(found.read(), torch.stack([by[1], tensor[1], tensor[2], by[0]]))


def test_wider_rows_are_rounded_once(folder):
    tensor, by = torch.randn(3, 4).bfloat16(), torch.randn(1, 4)
    found = replace_rows(backed(folder / "a", tensor), [1], backed(folder / "b", by))
    assert (found.dtype, found.source_dtype) == (BFLOAT16, FLOAT32)
    assert same(found.read()[1], by[0].bfloat16())
    assert same(found.to(FLOAT32).read()[1], by[0])


@pytest.mark.parametrize(
    ("rows", "shape", "dtype", "said"),
    [
        ([1], (2, 3), torch.float32, r"rows of shape \[2, 3\], expected \[1, 3\]"),
        ([1, 4], (2, 3), torch.float32, r"no rows \[4\] of a tensor of shape \[4, 3\]"),
        ([1, 1], (2, 3), torch.float32, r"rows twice in \[1, 1\]"),
        ([1], (1, 3), torch.int32, "int32, expected a floating-point type"),
    ],
)
def test_what_does_not_fit_is_said(folder, rows, shape, dtype, said):
    tensor = backed(folder / "a", torch.zeros(4, 3))
    with pytest.raises(ValueError, match=said):
        replace_rows(tensor, rows, backed(folder / "b", torch.zeros(shape, dtype=dtype)))
