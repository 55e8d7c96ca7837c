"""Files that threads write past the page cache, or through it where that cannot be."""

import errno
import fcntl
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.writers.outfile import OutputFile, allocate_aligned

STEP = 1 << 16


def content_of(size: int) -> bytes:
    return bytes(at * 31 % 251 for at in range(size))


def write(path: Path, content: bytes, *, direct: bool, jobs: int = 1) -> None:
    file = OutputFile(path, len(content), direct=direct)

    def put(start: int) -> None:
        buffer = allocate_aligned(STEP)
        buffer[:] = b"\xff" * STEP  # what lies behind the last block must not stay in the file
        part = content[start : start + STEP]
        buffer[: len(part)] = part
        file.write(buffer, len(part), start)

    try:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(put, range(0, len(content), STEP)))
        file.finish()
    finally:
        os.close(file.descriptor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outfile")


@pytest.mark.slow
@given(size=st.integers(0, 3 * STEP), direct=st.booleans())
def test_the_file_holds_exactly_what_was_written(folder: Path, size: int, direct: bool) -> None:
    write(folder / "file", content_of(size), direct=direct)
    assert (folder / "file").read_bytes() == content_of(size)


@pytest.mark.parametrize("direct", [True, False])
def test_threads_write_in_any_order(tmp_path: Path, direct: bool) -> None:
    content = content_of(9 * STEP + 4097)
    write(tmp_path / "file", content, direct=direct, jobs=4)
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.slow
def test_direct_writes_leave_nothing_in_the_page_cache(tmp_path: Path) -> None:
    """By the pages that are resident: the very point of it."""
    if not _has_direct_io(tmp_path):
        pytest.skip("this file system has no direct writes")
    for name, direct in (("direct", True), ("cached", False)):
        write(tmp_path / name, content_of(64 * STEP), direct=direct)
    if not shutil.which("fincore"):
        pytest.skip("no fincore to ask")
    resident = [_resident(tmp_path / name) for name in ("direct", "cached")]
    assert resident[0] < resident[1] == 64 * STEP


def _has_direct_io(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        return False
    return True


def _resident(path: Path) -> int:
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_a_file_system_that_does_not_open_directly_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.open

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct writes here")
        return plain(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    write(tmp_path / "file", content_of(STEP + 5), direct=True)
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == content_of(STEP + 5)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """File systems that accept the flag and refuse to write; the lengths that they refused."""
    plain, found = os.pwrite, list[int]()

    def refuse(descriptor: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            found.append(len(data))
            raise OSError(errno.EINVAL, "no direct writes here")
        return plain(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    return found


def test_a_file_system_that_refuses_direct_writes_is_written_through_the_cache(
    tmp_path: Path, refused: list[int]
) -> None:
    content = content_of(5 * STEP + 7)
    write(tmp_path / "file", content, direct=True, jobs=3)
    assert (tmp_path / "file").read_bytes() == content
    assert 1 <= len(refused) <= 3  # each thread at most once


def test_short_writes_go_on_where_they_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: plain(fd, data[: 4096 * 3], at))
    content = content_of(2 * STEP + 100)
    for direct in (True, False):
        write(tmp_path / "file", content, direct=direct)
        assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize("most", [1, 100, 4095])
def test_direct_writes_of_less_than_a_block_end_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """A direct write cannot go on within a block: the rest goes through the page cache."""
    plain = os.pwrite

    def cut_short(descriptor: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT and offset % STEP == 8192:
            return most
        return plain(descriptor, data[:8192], offset)

    monkeypatch.setattr(os, "pwrite", cut_short)
    content = content_of(2 * STEP + 100)
    write(tmp_path / "file", content, direct=True)
    assert (tmp_path / "file").read_bytes() == content


def test_other_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", content_of(STEP), direct=True)
    with pytest.raises(FileNotFoundError):
        OutputFile(tmp_path / "absent" / "file", 10, direct=True)
