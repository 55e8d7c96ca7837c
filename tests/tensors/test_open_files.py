"""More files than the system lets be open at once, read by several threads."""

import os
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from ckpt_tool.tensors.open_files import OpenFiles


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Files that hold their own number."""
    for number in range(300):
        (tmp_path / str(number)).write_bytes(number.to_bytes(2, "little"))
    return [str(tmp_path / str(number)) for number in range(300)]


@pytest.fixture
def limit():
    """Sixty-four files for this process, and no way to have more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 40, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def read_all(files: OpenFiles, paths: list[str], turns: int) -> None:
    def read(seed: int) -> None:
        for turn in range(turns):
            number = (seed * 7919 + turn * 104729) % len(paths)
            found = os.pread(files.descriptor(paths[number]), 2, 0)
            assert int.from_bytes(found, "little") == number

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(read, range(6)))


def test_threads_read_what_they_ask_for(paths, limit, monkeypatch) -> None:
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)  # as where the hard limit is it
    monkeypatch.setattr("ckpt_tool.tensors.open_files._allow_many", lambda: 8)
    files = OpenFiles()
    files._room = 8
    read_all(files, paths, 2000)
    assert len(files._descriptors) <= 14  # the eight, and those that were being read
    files.close()


def test_where_others_have_taken_them_the_oldest_are_closed(paths, limit, monkeypatch) -> None:
    monkeypatch.setattr("ckpt_tool.tensors.open_files._allow_many", lambda: 1 << 20)
    files = OpenFiles()
    read_all(files, paths, 300)
    files.close()


def test_where_nothing_can_be_closed_it_is_an_error(paths, limit, monkeypatch) -> None:
    monkeypatch.setattr("ckpt_tool.tensors.open_files._allow_many", lambda: 1 << 20)
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            OpenFiles().descriptor(paths[0])
    finally:
        for descriptor in taken:
            os.close(descriptor)
