"""Parts of objects: how long they are, what memory they take, and who waits for it."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import S3Store

from ckpt_tool.common.remote.address import Address
from ckpt_tool.common.remote.stores import open_store
from ckpt_tool.writers.objects import parts
from ckpt_tool.writers.objects.object_file import ObjectFile
from ckpt_tool.writers.objects.parts import PartPool, choose_part
from ckpt_tool.writers.objects.sending import GivenUpError, Sender, Upload
from tests.support.objects.buckets import Bucket

MIB = 1 << 20


@pytest.fixture
def sender() -> Iterator[Sender]:
    found = Sender()
    yield found
    found.close()


def begin(sender: Sender, sink: Bucket, size: int) -> Upload:
    return Upload(sender, find_store(sink), Address("s3", sink.name, "key"), choose_part(size))


def find_store(sink: Bucket) -> S3Store:
    store: S3Store = open_store(Address("s3", sink.name, ""))
    return store


@given(st.one_of(st.integers(0, 100 * MIB), st.integers(0, 5 << 40)))
def test_stores_take_parts_of_that_length(size: int) -> None:
    part = choose_part(size)
    count, rest = divmod(size, part)
    assert rest <= max(count, 0)
    assert count + bool(rest) <= 10_000
    assert part >= 5 * MIB or count <= 1
    assert part < max(16 * MIB, size / 4000)


@pytest.mark.parametrize("size", [0, 1, 8 * MIB - 1, 16 * MIB - 1, 16 * MIB, 61 * MIB + 7])
def test_an_object_is_what_threads_wrote_in_any_order(
    sender: Sender, sink: Bucket, size: int
) -> None:
    content = hashlib.sha512(str(size).encode()).digest() * (size // 64 + 1)
    content, store = content[:size], find_store(sink)
    upload = begin(sender, sink, size)
    file, step = ObjectFile(sender, upload, size), 4 * MIB
    starts = list(range(0, size, step))

    def write(start: int) -> None:
        block = memoryview(content)[start : start + step]
        file.write(block, len(block), start)

    pairs = [starts[at : at + 2][::-1] for at in range(0, len(starts), 2)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, [start for pair in pairs for start in pair]))
    file.settle()
    assert obstore.list(store).collect() == []
    upload.complete()
    upload.wait()
    assert bytes(obstore.get(store, "key").bytes()) == content


def test_memory_that_was_sent_is_used_again(
    sender: Sender, sink: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_BUDGET", 32 * MIB)
    made = []
    real = parts.mmap.mmap
    monkeypatch.setattr(parts.mmap, "mmap", lambda *a, **k: made.append(a) or real(*a, **k))
    size = 80 * MIB
    upload = begin(sender, sink, size)
    file, block = ObjectFile(sender, upload, size), memoryview(bytes(4 * MIB))
    for start in range(0, size, len(block)):
        file.write(block, len(block), start)
    file.settle()
    upload.complete()
    upload.wait()
    assert 0 < len(made) <= 4


def test_who_waits_for_memory_is_told_that_nobody_wants_it(
    sender: Sender, sink: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_BUDGET", 16 * MIB)
    held = [sender.pool.take(8 * MIB) for _ in range(3)]
    assert all(held)
    size = 64 * MIB
    upload = begin(sender, sink, size)
    file, told = ObjectFile(sender, upload, size), threading.Event()

    def write() -> None:
        with pytest.raises(GivenUpError):
            file.write(memoryview(bytes(4)), 4, 32 * MIB)
        told.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert not told.wait(0.1)
    file.stop()
    thread.join(10)
    assert told.is_set()
    upload.give_up()
    upload.forget()
    assert isinstance(upload.error, GivenUpError)


def test_there_is_room_for_three_parts_whatever_their_length() -> None:
    pool = PartPool()
    held = [pool.take(100 * MIB) for _ in range(4)]
    assert [part is None for part in held] == [False, False, False, True]
    del held[1:]
    assert pool.take(100 * MIB) is not None
