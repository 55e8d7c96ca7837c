"""Threads that fetch remote bytes: all is read where the system gives few of them, or none."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ckpt_tool.common.errors import StoreError
from ckpt_tool.common.remote import pool as pool_module
from ckpt_tool.common.remote.address import find_address
from ckpt_tool.common.remote.files import RemoteFile
from ckpt_tool.common.remote.pool import Pool
from ckpt_tool.common.remote.ranges import Ranges
from ckpt_tool.common.threads import start

PART = 1 << 16
CONTENT = b"".join(n.to_bytes(4, "little") for n in range(8 * PART // 4))


def fetch(start, stop):
    time.sleep(0.01)
    return memoryview(CONTENT[start:stop])


def read(ranges, part):
    buffer = bytearray(PART)
    ranges.read(part * PART, memoryview(buffer))
    assert buffer == CONTENT[part * PART : (part + 1) * PART]


@pytest.fixture
def limit(monkeypatch):
    """How many threads there may be at a time, by how a pool starts them."""
    allowed, error = [0], [RuntimeError("can't start new thread")]
    started: list[threading.Thread] = []

    def start_few(thread):
        if sum(each.is_alive() for each in started) >= allowed[0]:
            raise error[0]
        start(thread)
        started.append(thread)

    monkeypatch.setattr(pool_module, "start", start_few)
    return allowed, error


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError("none")])
@pytest.mark.parametrize("threads", [1, 2])
def test_few_threads_fetch_all(limit, threads, error):
    limit[0][0], limit[1][0] = threads, error
    ranges = Ranges(len(CONTENT), fetch, Pool())
    for part in range(8):
        ranges.order(part * PART, (part + 1) * PART)
        ranges.expect(part * PART, part * PART + 9)
    readers = ThreadPoolExecutor(8)
    waiting = [readers.submit(read, ranges, part) for part in range(8)]
    try:
        for each in waiting:
            each.result(30)
    finally:
        readers.shutdown(wait=False)


def test_where_no_thread_starts_whoever_reads_is_told_and_may_ask_again(limit):
    ranges = Ranges(len(CONTENT), fetch, Pool())
    ranges.expect(4 * PART, 4 * PART + 9)
    ranges.order(0, PART)
    for part in (0, 1):
        with pytest.raises(RuntimeError, match="can't start"):
            read(ranges, part)
    limit[0][0] = 1
    for part in range(8):
        read(ranges, part)


def test_what_is_announced_after_the_end_is_not_fetched():
    spans, pool = [], Pool()

    def note(start, stop):
        spans.append((start, stop))
        return fetch(start, stop)

    pool.stop()
    ranges = Ranges(len(CONTENT), note, pool)
    ranges.expect(0, 9)
    with pytest.raises(StoreError, match="interrupted"):
        read(ranges, 0)
    time.sleep(0.1)
    assert spans == []


def test_an_error_of_ours_is_not_its_own_cause(monkeypatch):
    def fail(self, start, stop):
        raise StoreError("cut short")

    monkeypatch.setattr(RemoteFile, "_ask", fail)
    monkeypatch.setattr(RemoteFile, "_address", find_address("s3://bucket/key"))
    file = RemoteFile("/somewhere", type("Found", (), {"size": 9})())
    with pytest.raises(StoreError, match="cut short") as caught:
        file._fetch(0, 9)
    assert caught.value.__cause__ is None
