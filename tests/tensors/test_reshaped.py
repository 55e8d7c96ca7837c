"""Tensors in other shapes: the same elements in the same order, wherever they lie."""

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import BFLOAT16
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import cat
from ckpt_tool.tensors.reshaped import Reshaped, find_path, list_paths, reshape
from tests.support.backed import backed, distinct, layouts, raw, same


def is_joined(tensor) -> bool:
    return any(isinstance(chunk.region.computed, Reshaped) for chunk in tensor.chunks)


def boxes_of(tensor) -> list[tuple[Box, tuple[int, ...]]]:
    return [(chunk.box, chunk.region.strides) for chunk in tensor.chunks]


def test_a_whole_dimension_becomes_two(tmp_path):
    found = reshape(backed(tmp_path / "x", distinct((6, 4))), (2, 3, 4))
    assert found.shape == (2, 3, 4)
    assert boxes_of(found) == [(Box((0, 0, 0), (2, 3, 4)), (12, 4, 1))]
    assert not is_joined(found)


def test_a_span_that_ends_amid_the_rows_is_cut(tmp_path):
    # Rows 0 to 3 and 4 to 6 of 7, of which pairs are made once the last is gone: [3, 2].
    halves = [Box((0, 0), (4, 2)), Box((4, 0), (3, 2))]
    tensor = backed(tmp_path / "x", distinct((7, 2)), halves).narrow(0, 1, 6)
    found = reshape(tensor, (3, 2, 2))
    # The first shard's rows 1 to 3 are the first pair and half of the second one.
    assert boxes_of(found) == [
        (Box((0, 0, 0), (1, 2, 2)), (4, 2, 1)),
        (Box((1, 0, 0), (1, 1, 2)), (4, 2, 1)),
        (Box((1, 1, 0), (1, 1, 2)), (4, 2, 1)),
        (Box((2, 0, 0), (1, 2, 2)), (4, 2, 1)),
    ]
    assert same(found.read(), distinct((7, 2))[1:].reshape(3, 2, 2))


def test_rows_of_two_halves_are_interleaved(tmp_path):
    tensor = backed(tmp_path / "x", torch.arange(12.0).reshape(6, 2))
    found = reshape(reshape(tensor, (2, 3, 2)).transpose(0, 1), (6, 2))
    rows = [0, 3, 1, 4, 2, 5]
    assert found.read().tolist() == [[2.0 * row, 2.0 * row + 1] for row in rows]
    assert is_joined(found)
    assert found.origin == tensor.origin
    assert found.narrow(0, 1, 2).read().tolist() == [[6.0, 7.0], [2.0, 3.0]]
    assert found.transpose(0, 1).read().tolist()[1] == [2.0 * row + 1 for row in rows]
    assert found.select(1, 0).read().tolist() == [2.0 * row for row in rows]


def test_what_is_joined_is_cast_once_and_joined_to_others(tmp_path):
    values = distinct((4, 3))
    tensor = backed(tmp_path / "x", values)
    turned = reshape(tensor.transpose(0, 1), (12,))
    expected = values.T.reshape(12)
    assert same(turned.to(BFLOAT16).read(), expected.bfloat16())
    cast_before = reshape(tensor.to(BFLOAT16).transpose(0, 1), (12,))
    assert same(cast_before.read(), expected.bfloat16())
    both = cat([turned, reshape(tensor, (12,)), backed(tmp_path / "y", distinct((2,)))], 0)
    assert same(both.read(), torch.cat([expected, values.reshape(12), distinct((2,))]))


def test_the_file_of_an_element_is_found_behind_its_other_shape(tmp_path):
    # Rows 0 to 3 in one file, 4 and 5 in another; interleaved they are 0, 3, 1, 4, 2, 5.
    parts = [backed(tmp_path / str(n), distinct((rows, 2))) for n, rows in enumerate((4, 2))]
    tensor = cat(parts, 0)
    found = reshape(reshape(tensor, (2, 3, 2)).transpose(0, 1), (6, 2))
    files = [Path(find_path(found, (row, 1))).name for row in range(6)]
    assert files == ["0", "0", "0", "1", "0", "1"]
    assert [Path(find_path(found.narrow(0, 3, 2), (row, 0))).name for row in (0, 1)] == ["1", "0"]
    assert find_path(tensor, (4, 0)) == str(tmp_path / "1")
    assert list_paths(found) == list_paths(tensor) == {str(tmp_path / "0"), str(tmp_path / "1")}
    assert find_path(replace(tensor, chunks=()), (0, 0)) == ""


@pytest.mark.parametrize("sizes", [(5,), (-1, -1), (-1, 5), (-2, -6), (12, 0)])
def test_other_numbers_of_elements_are_refused(sizes, tmp_path):
    tensor = backed(tmp_path / "x", distinct((4, 3)))
    with pytest.raises(ValueError, match="shape"):
        reshape(tensor, sizes)


def test_one_size_may_be_left_open(tmp_path):
    tensor = backed(tmp_path / "x", distinct((4, 3)))
    assert reshape(tensor, (2, -1, 3)).shape == (2, 2, 3)
    assert reshape(tensor, (-1,)).shape == (12,)
    assert reshape(tensor, (4, 3)) is tensor


@st.composite
def factorings(draw: st.DrawFn, count: int) -> tuple[int, ...]:
    """A shape of this many elements, ones and all."""
    sizes, rest = [], count
    for _ in range(draw(st.integers(0, 3))):
        size = draw(st.sampled_from([n for n in range(1, rest + 1) if rest % n == 0] or [1]))
        sizes.append(size)
        rest = rest // size if size else rest
    return (*sizes, rest)


@given(layouts(), st.data())
def test_it_is_what_torch_makes_and_the_way_back_gives_the_tensor(tmp_path_factory, layout, data):
    path = tmp_path_factory.mktemp("reshaped") / "x"
    tensor, values = backed(path, **layout), layout["tensor"]
    shape = data.draw(factorings(values.numel()))
    found = reshape(tensor, shape)
    assert same(found.read(), values.reshape(shape))
    assert same(reshape(found, values.shape).read(), values)
    if len(shape) < 2:
        return
    first, second = data.draw(st.permutations(range(len(shape))))[:2]
    turned, expected = (
        found.transpose(first, second),
        values.reshape(shape).transpose(first, second),
    )
    other = data.draw(factorings(values.numel()))
    there = reshape(turned, other)
    assert same(there.read(), expected.reshape(other))
    back = reshape(reshape(there, turned.shape).transpose(first, second), values.shape)
    assert same(back.read(), values)


@given(layouts(), st.data())
def test_any_range_of_the_row_major_order_is_read(tmp_path_factory, layout, data):
    path = tmp_path_factory.mktemp("reshaped") / "x"
    values = layout["tensor"]
    if values.dim() < 2:
        return
    found = reshape(backed(path, **layout).transpose(0, 1), (values.numel(),))
    start, stop = sorted(data.draw(st.integers(0, values.numel())) for _ in range(2))
    out = bytearray((stop - start) * values.element_size())
    with FileTable() as files:
        BlockReader(files).read(found, start, stop, memoryview(out))
    assert bytes(out) == raw(values.transpose(0, 1).reshape(-1)[start:stop])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), st.data())
def test_a_box_of_it_is_read_as_any_other(tmp_path_factory, shape, data):
    path = tmp_path_factory.mktemp("reshaped") / "x"
    values = distinct((prod(shape), 2)).T
    found = reshape(backed(path, values.T).transpose(0, 1), (2, *shape))
    expected = values.reshape(2, *shape)
    for dim, size in enumerate(expected.shape):
        start = data.draw(st.integers(0, size - 1))
        length = data.draw(st.integers(1, size - start))
        found, expected = found.narrow(dim, start, length), expected.narrow(dim, start, length)
    order = data.draw(st.permutations(range(expected.dim())))
    assert same(found.transpose(0, order[0]).read(), expected.transpose(0, order[0]))
