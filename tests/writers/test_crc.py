"""CRC-32 put together from pieces, against zlib's of the whole."""

import random
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.writers.crc import PieceSums


def never() -> bool:
    return False


@given(st.binary(max_size=200), st.data())
def test_pieces_may_arrive_in_any_order(data, draw):
    cuts = sorted(draw.draw(st.sets(st.integers(0, len(data)), max_size=6)) | {0, len(data)})
    pieces = draw.draw(st.permutations(list(pairwise(cuts))))
    sums = PieceSums(never)
    for start, stop in pieces:
        sums.add(3, start, memoryview(data)[start:stop])
    assert sums.whole(3, len(data)) == zlib.crc32(data)


def test_an_empty_item_needs_no_piece():
    assert PieceSums(never).whole(0, 0) == 0


def test_items_do_not_mix():
    sums = PieceSums(never)
    for item, data in ((1, b"abc"), (2, b"xyz")):
        for at in (1, 0, 2):
            sums.add(item, at, memoryview(data)[at : at + 1])
    assert sums.whole(2, 3) == zlib.crc32(b"xyz")
    assert sums.whole(1, 3) == zlib.crc32(b"abc")


def test_threads_that_add_in_random_order_and_others_that_wait():
    chance, size = random.Random(7), 977
    items = [chance.randbytes(chance.randrange(20_000, 60_000)) for _ in range(6)]
    tasks = [(n, at) for n, data in enumerate(items) for at in range(0, len(data), size)]
    chance.shuffle(tasks)
    sums = PieceSums(never)

    def add(start: int) -> None:
        for item, at in tasks[start::4]:
            sums.add(item, at, memoryview(items[item])[at : at + size])
            if at % 7 == 0:
                time.sleep(0.0005)

    with ThreadPoolExecutor(4 + len(items)) as pool:
        found = [pool.submit(sums.whole, n, len(data)) for n, data in enumerate(items)]
        added = [pool.submit(add, start) for start in range(4)]
        assert [future.result(20) for future in found] == [zlib.crc32(data) for data in items]
        assert [future.result(20) for future in added] == [None] * 4


def test_who_asks_waits_for_the_last_piece():
    sums, found = PieceSums(never), []
    sums.add(0, 0, memoryview(b"abc"))
    waiting = threading.Thread(target=lambda: found.append(sums.whole(0, 6)), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    assert not found
    sums.add(0, 3, memoryview(b"def"))
    waiting.join(10)
    assert found == [zlib.crc32(b"abcdef")]


@pytest.mark.parametrize("pieces", [0, 1])
def test_who_waits_gives_up_when_the_work_is_stopped(pieces):
    stop, found = threading.Event(), []
    sums = PieceSums(stop.is_set)
    for at in range(pieces):
        sums.add(0, at, memoryview(b"a"))
    waiting = threading.Thread(target=lambda: found.append(sums.whole(0, 6)), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    stop.set()
    waiting.join(10)
    assert len(found) == 1


def test_nothing_to_wait_for_is_zero_once_stopped():
    assert PieceSums(lambda: True).whole(0, 6) == 0


def test_a_part_is_zero_too_once_stopped():
    sums = PieceSums(lambda: True)
    sums.add(0, 0, memoryview(b"abc"))
    assert sums.whole(0, 6) == 0
