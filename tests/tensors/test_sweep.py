"""Consecutive blocks of a range, planned once: the same bytes as of each block by itself."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tool.common.errors import FormatError
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.columns import take_columns
from ckpt_tool.tensors.dtypes import BFLOAT16
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor, cat, stack
from ckpt_tool.tensors.sweep import Sweep, find_step
from tests.support.backed import backed, distinct, layouts, raw

GUARD = b"\x5a" * 16


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def swept(tensor: LazyTensor, step: int, span: tuple[int, int] | None = None) -> bytes:
    """All blocks of a range; asserts that nothing around any of them was written."""
    start, end = span or (0, tensor.numel)
    found = b""
    with FileTable() as files:
        sweep = Sweep(BlockReader(files), tensor, (start, end), step)
        for at in range(start, end, step):
            size = (min(at + step, end) - at) * tensor.dtype.itemsize
            buffer = bytearray(GUARD + b"\xcc" * size + GUARD)
            block = memoryview(buffer)[len(GUARD) : len(GUARD) + size]
            sweep.read(at, min(at + step, end), block)
            assert buffer[: len(GUARD)] == buffer[len(GUARD) + size :] == GUARD
            found += block
    return found


@pytest.mark.parametrize("most", [1, 7, 33, 66, 100, 330, 5000])
@pytest.mark.parametrize("cut", [(50, 33), (10, 33), (50, 11), (10, 11), (7, 5)])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_matrices_cut_into_shards(tmp_path, most, cut, order):
    tensor = distinct((50, 33))
    boxes = [
        Box((row, column), (min(cut[0], 50 - row), min(cut[1], 33 - column)))
        for row in range(0, 50, cut[0])
        for column in range(0, 33, cut[1])
    ]
    lazy = backed(tmp_path / "t", tensor, boxes, order)
    step = find_step(lazy.shape, most)
    assert 1 <= step <= most
    assert swept(lazy, step) == raw(tensor)


@pytest.mark.slow
@settings(max_examples=300)
@given(layouts(), st.integers(1, 200), st.data())
def test_any_range_of_any_layout(folder, layout, most, data):
    lazy, tensor = backed(folder / "range", **layout), layout["tensor"]
    if tensor.ndim > 1 and data.draw(st.booleans()):
        lazy, tensor = lazy.transpose(0, -1), tensor.transpose(0, -1)
    step = find_step(lazy.shape, most)
    row = data.draw(st.sampled_from([1, step]))  # a range may begin within a row
    start = data.draw(st.integers(0, tensor.numel() // row)) * row
    stop = data.draw(st.integers(start, tensor.numel()))
    size = tensor.element_size()
    assert swept(lazy, step, (start, stop)) == raw(tensor)[start * size : stop * size]


def test_blocks_that_are_no_whole_rows(tmp_path):
    tensor = distinct((40, 30))
    lazy = backed(tmp_path / "t", tensor, [Box((0, c), (40, 10)) for c in (0, 10, 20)])
    for step in (31, 45, 299):
        assert swept(lazy, step) == raw(tensor)


def test_experts_cut_along_each_dimension(tmp_path):
    tensor = distinct((6, 8, 10))
    for dim, size in ((0, 2), (1, 4), (2, 5)):
        parts = tensor.split(size, dim)
        shards = [backed(tmp_path / f"{dim}{at}", part) for at, part in enumerate(parts)]
        for most in (10, 25, 80, 200, 480):
            lazy = cat(shards, dim)
            assert swept(lazy, find_step(lazy.shape, most)) == raw(tensor)


def test_what_is_cast_or_computed(tmp_path):
    tensor = distinct((30, 12))
    lazy = backed(tmp_path / "t", tensor)
    cast = lazy.to(BFLOAT16)
    assert swept(cast, find_step(cast.shape, 50)) == raw(tensor.bfloat16())
    columns = take_columns(lazy, 1, 3)
    assert swept(columns, find_step(columns.shape, 9)) == raw(tensor[:, 1::3])


def test_more_pieces_than_are_kept(tmp_path):
    parts = [distinct((3, 5)) + at for at in range(300)]
    lazy = stack([backed(tmp_path / str(at), part) for at, part in enumerate(parts)])
    assert swept(lazy, find_step(lazy.shape, 100)) == raw(torch.stack(parts))


def test_steps_are_the_most_rows_that_fit():
    assert find_step((50, 33), 100) == 99
    assert find_step((50, 33), 32) == 32  # less than a row: elements
    assert find_step((6, 8, 10), 79) == 70
    assert find_step((6, 8, 10), 170) == 160
    assert find_step((), 5) == find_step((7,), 5) == find_step((3, 0), 5) == 5


def test_a_truncated_file_is_an_error(tmp_path):
    lazy = backed(tmp_path / "t", distinct((9, 4)), [Box((0, c), (9, 2)) for c in (0, 2)])
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-1])
    with pytest.raises(FormatError, match="t: ends at byte"):
        swept(lazy, find_step(lazy.shape, 8))
