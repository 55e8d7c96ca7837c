"""What was in memory before a merge is there after it, and what was not is not."""

from pathlib import Path

import pytest

from ckpt_tool import MergeOptions, WriteOptions, merge_fsdp
from ckpt_tool.tensors.page_cache import is_somebodys
from tests.support.merging import values, write_rank
from tests.support.resident import drop, measure_resident

#: What stays of a file that was read once: pages of its metadata that a reader has looked at, and,
#: on a busy machine, what the kernel was still reading ahead when the file was let go: 8 MiB of 32.
FEW = 0.3


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two ranks that hold the same 32 MB: they are read to be compared, one also to be written."""
    state = {f"layers.{n}.weight": values(1024, 1024, start=n << 20) for n in range(8)}
    for rank in range(2):
        write_rank(tmp_path / "in", state, None, rank, 2)
    return tmp_path / "in"


def list_ranks(source: Path) -> list[Path]:
    return sorted(source.glob("*.pt"))


def merge(source: Path, out: Path, dtype: str = "keep") -> None:
    write = WriteOptions(verify=True, check_load=False)
    options = MergeOptions(keep_names=True, dtype=dtype, max_shard_size="5MB", write=write, jobs=2)
    assert merge_fsdp(source, out, options).verified


@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
def test_a_merge_leaves_no_pages_that_were_not_there(
    source: Path, tmp_path: Path, dtype: str
) -> None:
    if not all(map(drop, list_ranks(source))):
        pytest.skip("files stay in memory on this file system")
    merge(source, tmp_path / "out", dtype)
    for path in list_ranks(source):
        assert measure_resident(path) < FEW, path


def test_what_was_there_stays(source: Path, tmp_path: Path) -> None:
    first, second = list_ranks(source)
    if not (drop(first) and drop(second)):
        pytest.skip("files stay in memory on this file system")
    first.read_bytes()
    merge(source, tmp_path / "out")
    assert measure_resident(first) == 1
    assert measure_resident(second) < FEW


def test_whose_a_file_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(16 << 20))
    if not drop(path):
        pytest.skip("files stay in memory on this file system")
    with path.open("rb", buffering=0) as file:
        assert not is_somebodys(file.fileno())
        assert measure_resident(path) < 0.01  # to ask brings nothing in
        file.read(64 << 10)  # as metadata is read; the kernel reads some more
        assert not is_somebodys(file.fileno())
        file.read(8 << 20)
        assert is_somebodys(file.fileno())
    empty = tmp_path / "empty"
    empty.touch()
    with empty.open("rb") as file:
        assert is_somebodys(file.fileno())
