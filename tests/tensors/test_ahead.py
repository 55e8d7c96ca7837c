"""What tasks read is known before they do, and nothing else."""

import numpy as np
import pytest

from ckpt_tool.tensors import ahead
from ckpt_tool.tensors.ahead import Read, list_reads, order_ahead
from ckpt_tool.tensors.blocks import BlockReader
from ckpt_tool.tensors.chunks import Chunk, Region
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.geometry import Box, make_strides
from ckpt_tool.tensors.lazy import LazyTensor, cat
from tests.support.noting import NotedFiles


@pytest.fixture
def ordered(monkeypatch):
    """What is ordered, as if all files were remote."""
    found = []
    monkeypatch.setattr(ahead, "are_there", lambda: True)
    monkeypatch.setattr(ahead, "order", lambda *read: found.append(read))
    return found


def test_tasks_are_handed_out_with_what_they_and_the_next_ones_read_on_its_way(ordered):
    step = 4 << 20
    tasks = order_ahead(range(40), lambda n: [Read("a", n * step, (n + 1) * step)])
    assert next(tasks) == 0
    begun = max(stop for _, _, stop in ordered)
    assert 9 * step <= begun <= 15 * step  # not all of it
    assert [*tasks] == [*range(1, 40)]
    assert sum(stop - start for _, start, stop in ordered) == 40 * step


def test_reads_that_touch_are_ordered_together(ordered):
    reads = {
        0: [Read("b", 0, 10), Read("a", 5, 9)],
        1: [Read("a", 9, 12), Read("a", 90_000, 90_001)],
    }
    assert [*order_ahead([0, 1], lambda n: reads[n])] == [0, 1]
    assert ordered == [("a", 5, 12), ("a", 90_000, 90_001), ("b", 0, 10)]


def test_parts_of_many_files_are_ordered_for_several_tasks_together(ordered):
    ranks, part = 64, 64 << 10
    tasks = order_ahead(
        range(12), lambda n: [Read(f"{r:02}", n * part, (n + 1) * part) for r in range(ranks)]
    )
    assert [*tasks] == [*range(12)]
    sizes = {stop - start for _, start, stop in ordered}
    assert sizes == {4 * part}
    assert sum(stop - start for _, start, stop in ordered) == 12 * ranks * part


def test_local_files_are_not_ordered(monkeypatch):
    monkeypatch.setattr(ahead, "are_there", lambda: False)
    monkeypatch.setattr(ahead, "order", None)  # calling it would fail
    assert [*order_ahead([1, 2], lambda n: [Read("a", 0, n)])] == [1, 2]


@pytest.fixture
def tensor(tmp_path):
    """A matrix of distinct elements in a file."""
    path = tmp_path / "data.bin"
    np.arange(32 * 48, dtype=np.float32).tofile(path)
    region = Region(str(path), 0, make_strides((32, 48)))
    return LazyTensor((32, 48), FLOAT32, FLOAT32, (Chunk(Box((0, 0), (32, 48)), region),))


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t,
        lambda t: t.transpose(0, 1),
        lambda t: t.narrow(1, 5, 40),
        lambda t: t.narrow(1, 5, 3),
        lambda t: cat([t.narrow(0, 16, 16), t.narrow(0, 0, 16)], 0),
        lambda t: cat([t.narrow(1, 24, 24), t.narrow(1, 0, 24)], 1),
    ],
)
def test_what_is_listed_is_what_is_read(tensor, view):
    found = view(tensor)
    for start, stop in ((0, found.numel), (7, 90), (48, 96)):
        with NotedFiles() as table:
            BlockReader(table).read(found, start, stop, memoryview(bytearray((stop - start) * 4)))
        assert sorted(list_reads(found, start, stop)) == sorted(table.reads)
