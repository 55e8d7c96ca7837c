"""The data path: any range of any layout, into the caller's buffer and no further."""

import os
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tool.common.errors import FormatError
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.chunks import Chunk, Region
from ckpt_tool.tensors.dtypes import BFLOAT16, FLOAT16, FLOAT32
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor, stack
from ckpt_tool.tensors.rounding import CastErrors
from tests.support.backed import backed, distinct, layouts, raw
from tests.support.noting import NotedFiles

GUARD = b"\x5a" * 16


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture
def files() -> Iterator[FileTable]:
    with FileTable() as table:
        yield table


def block(reader: BlockReader, tensor: LazyTensor, start: int, stop: int) -> bytes:
    """Elements `[start, stop)`; asserts that nothing around the buffer was written."""
    size = (stop - start) * tensor.dtype.itemsize
    buffer = bytearray(GUARD + b"\xcc" * size + GUARD)
    reader.read(tensor, start, stop, memoryview(buffer)[len(GUARD) : len(GUARD) + size])
    assert buffer[: len(GUARD)] == buffer[len(GUARD) + size :] == GUARD
    return bytes(buffer[len(GUARD) : len(GUARD) + size])


@pytest.mark.slow
@settings(max_examples=200)
@given(layouts(), st.data())
def test_any_range_of_any_layout(folder, layout, data):
    lazy, tensor = backed(folder / "range", **layout), layout["tensor"]
    if tensor.ndim > 1 and data.draw(st.booleans()):
        lazy, tensor = lazy.transpose(0, -1), tensor.transpose(0, -1)
    expected, size = raw(tensor), tensor.element_size()
    with FileTable() as files:
        reader = BlockReader(files)
        for _ in range(3):  # scratch memory is reused
            start = data.draw(st.integers(0, tensor.numel()))
            stop = data.draw(st.integers(start, tensor.numel()))
            assert block(reader, lazy, start, stop) == expected[start * size : stop * size]


@pytest.mark.slow
@settings(max_examples=50)
@given(layouts(), st.sampled_from([BFLOAT16, FLOAT16]), st.data())
def test_any_range_with_a_cast(folder, layout, target, data):
    tensor = layout["tensor"] = distinct(layout["tensor"].shape)
    lazy = backed(folder / "cast", **layout).to(target)
    expected = raw(tensor.to(getattr(torch, target.name)))
    start = data.draw(st.integers(0, tensor.numel()))
    stop = data.draw(st.integers(start, tensor.numel()))
    with FileTable() as files:
        found = block(BlockReader(files), lazy, start, stop)
    assert found == expected[2 * start : 2 * stop]


def test_consecutive_blocks_make_up_the_tensor(tmp_path, files):
    tensor = distinct((50, 33))
    boxes = [Box((r, c), (10, 11)) for r in range(0, 50, 10) for c in range(0, 33, 11)]
    lazy = backed(tmp_path / "t", tensor, boxes, order=(1, 0))
    reader = BlockReader(files)
    pieces = [block(reader, lazy, at, min(at + 97, 1650)) for at in range(0, 1650, 97)]
    assert b"".join(pieces) == raw(tensor)


@settings(max_examples=200)
@given(layouts(), st.data())
def test_any_range_of_a_part(folder, layout, data):
    """What lies between is not read, or is not there."""
    lazy, tensor = backed(folder / "part", **layout), layout["tensor"]
    for dim, size in enumerate(tensor.shape):
        start = data.draw(st.integers(0, size))
        length = data.draw(st.integers(0, size - start))
        lazy, tensor = lazy.narrow(dim, start, length), tensor.narrow(dim, start, length)
    start = data.draw(st.integers(0, tensor.numel()))
    stop = data.draw(st.integers(start, tensor.numel()))
    size = tensor.element_size()
    with FileTable() as files:
        found = block(BlockReader(files), lazy, start, stop)
    assert found == raw(tensor)[start * size : stop * size]


def test_runs_that_the_file_ends_in_are_an_error(tmp_path):
    tensor = distinct((300, 200))
    columns = backed(tmp_path / "t", tensor).narrow(1, 20, 10)
    kept = columns.chunks[0].region.offset + 299 * 800 + 20
    os.truncate(tmp_path / "t", kept)
    reader = BlockReader(FileTable())
    assert block(reader, columns, 0, 2990) == raw(tensor[:299, 20:30])
    with pytest.raises(FormatError, match=f"ends at byte {kept}, expected 20 more"):
        block(reader, columns, 2900, 3000)


def test_overlapping_strides(tmp_path, files):
    """An expanded tensor (stride 0) and a sliding window (rows share elements)."""
    tensor = distinct((8,))
    (tmp_path / "t").write_bytes(raw(tensor))
    reader = BlockReader(files)
    for shape, strides in [((3, 8), (0, 1)), ((8, 3), (1, 0)), ((5, 4), (1, 1)), ((2, 3), (0, 0))]:
        region = Region(str(tmp_path / "t"), 0, strides)
        whole = Box((0,) * len(shape), shape)
        lazy = LazyTensor(shape, FLOAT32, FLOAT32, (Chunk(whole, region),))
        expected = raw(tensor.as_strided(shape, strides))
        count = shape[0] * shape[1]
        assert block(reader, lazy, 0, count) == expected
        assert block(reader, lazy, 1, count - 1) == expected[4:-4]


def test_sparse_regions_do_not_read_what_lies_between(tmp_path, files):
    """A column of a matrix whose rows are megabytes apart, in a sparse file."""
    path = tmp_path / "sparse"
    stride = 1 << 28  # elements: the whole spans 7 GiB, which must not be allocated
    values = distinct((7, 3))
    with path.open("wb") as file:
        for row in range(7):
            file.seek(row * stride * 4)
            file.write(raw(values[row]))
    region = Region(str(path), 0, (stride, 1))
    lazy = LazyTensor((7, 3), FLOAT32, FLOAT32, (Chunk(Box((0, 0), (7, 3)), region),))
    reader = BlockReader(files)
    tracemalloc.start()
    try:
        assert block(reader, lazy, 0, 21) == raw(values)
        assert block(reader, lazy.transpose(0, 1), 2, 19) == raw(values.t())[8:76]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_few_columns_of_a_matrix_are_read_run_by_run(tmp_path):
    """300 rows, 10 of 200 columns: a run per row, whichever way the matrix is turned."""
    tensor = distinct((300, 200))
    columns = backed(tmp_path / "t", tensor).narrow(1, 20, 10)
    with NotedFiles() as files:
        assert block(BlockReader(files), columns, 0, 3000) == raw(tensor[:, 20:30])
        assert len(files.reads) == 300
        turned = columns.transpose(0, 1)
        assert block(BlockReader(files), turned, 0, 3000) == raw(tensor[:, 20:30].t())
        assert len(files.reads) == 600


def test_runs_are_read_in_the_order_that_the_file_has_them(tmp_path):
    """Straight into place too, where the tensor has its rows in another one."""
    tensor = distinct((6, 5, 200))
    lazy = backed(tmp_path / "t", tensor).narrow(2, 20, 10)
    for dims in ((0, 1), (1, 2), (0, 2)):
        with NotedFiles() as files:
            expected = raw(tensor[:, :, 20:30].transpose(*dims))
            assert block(BlockReader(files), lazy.transpose(*dims), 0, 300) == expected
            assert len(files.reads) == 30
            assert files.reads == sorted(files.reads)


def test_a_dense_strided_block_is_one_read(tmp_path):
    tensor = distinct((30, 20))
    columns = backed(tmp_path / "t", tensor).narrow(1, 0, 15).transpose(0, 1)
    with NotedFiles() as files:
        assert block(BlockReader(files), columns, 0, 450) == raw(tensor[:, :15].t())
        assert len(files.reads) == 1


def test_a_transposed_matrix_of_several_blocks(tmp_path, files):
    tensor = distinct((300, 200))
    lazy = backed(tmp_path / "t", tensor).transpose(0, 1)
    reader = BlockReader(files)
    pieces = [block(reader, lazy, at, min(at + 7001, 60000)) for at in range(0, 60000, 7001)]
    assert b"".join(pieces) == raw(tensor.t())


def test_reading_learns_the_largest_cast_error(tmp_path, files):
    lazy = backed(tmp_path / "t", torch.tensor([1.0, 1.0 + 2**-9, -3.0 - 2**-8, 0.5]))
    reader, out = BlockReader(files), memoryview(bytearray(8))
    reader.read(lazy, 0, 2, out)
    assert reader.errors.listed() == ()
    reader.read(lazy.to(BFLOAT16), 0, 1, out[:2])
    assert reader.errors.listed() == (("float32", "bfloat16", 0.0),)
    reader.read(lazy.to(BFLOAT16), 0, 4, out)
    assert reader.errors.largest("float32", "bfloat16") == 2**-8
    reader.read(lazy.to(BFLOAT16), 0, 1, out[:2])
    assert reader.errors.largest("float32", "bfloat16") == 2**-8


def test_readers_share_what_is_known_of_errors(tmp_path, files):
    lazy = backed(tmp_path / "t", torch.tensor([1.0, 1.0 + 2**-9, -3.0 - 2**-8, 0.5])).to(BFLOAT16)
    errors = CastErrors()
    one, other = (BlockReader(files, errors) for _ in range(2))
    one.read(lazy, 0, 2, memoryview(bytearray(4)))
    assert errors.largest("float32", "bfloat16") == 2**-9
    other.read(lazy, 2, 4, memoryview(bytearray(4)))
    assert errors.listed() == (("float32", "bfloat16", 2**-8),)
    errors.learn("float32", "bfloat16", 0.25)
    other.read(lazy, 0, 4, memoryview(bytearray(8)))
    assert errors.largest("float32", "bfloat16") == 0.25


def test_a_truncated_file_is_a_format_error_that_names_it(tmp_path, files):
    path = tmp_path / "short"
    lazy = backed(path, distinct((6, 4)))
    path.write_bytes(path.read_bytes()[:-1])
    reader = BlockReader(files)
    assert block(reader, lazy, 0, 20) == raw(distinct((6, 4)))[:80]
    for tensor in (lazy, lazy.transpose(0, 1), lazy.to(BFLOAT16)):
        with pytest.raises(FormatError, match="short: ends at byte"):
            block(reader, tensor, 0, 24)


def test_a_sparse_region_behind_the_end_is_a_format_error(tmp_path, files):
    path = tmp_path / "short"
    lazy = backed(path, distinct((6, 4)), gap=9)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(FormatError, match="short: ends at byte"):
        block(BlockReader(files), lazy, 0, 24)


def test_a_missing_file_is_an_os_error(tmp_path, files):
    lazy = backed(tmp_path / "gone", distinct((2,)))
    (tmp_path / "gone").unlink()
    with pytest.raises(FileNotFoundError):
        block(BlockReader(files), lazy, 0, 2)


def test_pieces_from_many_files(tmp_path, files):
    tensors = [distinct((3,), torch.int64) + 100 * n for n in range(250)]
    lazy = stack([backed(tmp_path / str(n), t) for n, t in enumerate(tensors)])
    assert block(BlockReader(files), lazy, 0, 750) == raw(torch.stack(tensors))


def test_threads_share_a_file_table(tmp_path, files):
    tensor = distinct((64, 48))
    lazy = replace(backed(tmp_path / "t", tensor)).transpose(0, 1)
    found: dict[int, bytes] = {}

    def read(number: int) -> None:
        reader = BlockReader(files)
        found[number] = b"".join(block(reader, lazy, at, at + 64) for at in range(0, 3072, 64))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found.values()) == {raw(tensor.t())}
    assert len(found) == 4


def test_closing_the_table_closes_the_files(tmp_path):
    (tmp_path / "t").write_bytes(b"abcd")
    with FileTable() as files:
        descriptor = files.descriptor(str(tmp_path / "t"))
        assert files.descriptor(str(tmp_path / "t")) == descriptor
        buffer = np.zeros(2, np.uint8)
        files.read(str(tmp_path / "t"), 1, memoryview(buffer))
        assert buffer.tobytes() == b"bc"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
