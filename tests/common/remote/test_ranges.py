"""Ranges of a remote file: the right bytes, each asked for once where it was said before."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.common.errors import StoreError
from ckpt_tool.common.remote.pool import Pool
from ckpt_tool.common.remote.ranges import Ranges, join_near

CONTENT = b"".join(n.to_bytes(4, "little") for n in range(1 << 18))  # every four bytes distinct
SIZE = len(CONTENT)


class Asked:
    """A file that is asked for ranges, and notes which."""

    def __init__(self, size=SIZE):
        self.spans = []
        self.lock = threading.Lock()
        self.ranges = Ranges(size, self.fetch, Pool())

    def fetch(self, start, stop):
        with self.lock:
            self.spans.append((start, stop))
        return memoryview(CONTENT[start:stop])

    def read(self, offset, size):
        buffer = bytearray(size)
        count = self.ranges.read(offset, memoryview(buffer))
        return bytes(buffer[:count])

    @property
    def total(self):
        return sum(stop - start for start, stop in self.spans)


spans = st.tuples(st.integers(0, SIZE + 9), st.integers(0, 300_000))


@given(st.lists(st.tuples(st.sampled_from(["read", "order", "expect"]), spans), max_size=30))
def test_any_order_of_asking_gives_the_right_bytes(steps):
    asked = Asked()
    for what, (offset, size) in steps:
        if what == "read":
            assert asked.read(offset, size) == CONTENT[offset : offset + size]
        else:
            getattr(asked.ranges, what)(offset, offset + size)
    assert all(0 <= start < stop <= SIZE for start, stop in asked.spans)


def test_what_is_ordered_is_fetched_once_whoever_reads_it_and_how():
    asked = Asked()
    for start in range(0, SIZE, 100_000):
        asked.ranges.order(start, start + 100_000)

    def read(start):
        return b"".join(asked.read(start + at, 7_000) for at in range(0, 70_000, 7_000))

    with ThreadPoolExecutor(4) as pool:
        found = b"".join(pool.map(read, range(0, SIZE, 70_000)))
    assert found == CONTENT
    assert asked.total == SIZE


def test_ordering_again_what_is_on_its_way_asks_for_nothing():
    asked = Asked()
    asked.ranges.order(1000, 200_000)
    asked.ranges.order(0, 300_000)
    assert asked.read(0, 300_000) == CONTENT[:300_000]
    assert sorted(asked.spans) == [(0, 1000), (1000, 200_000), (200_000, 300_000)]


def test_a_long_read_takes_no_more_than_it_needs():
    asked = Asked()
    assert asked.read(5, 600_000) == CONTENT[5:600_005]
    assert asked.spans == [(5, 600_005)]


def test_short_reads_that_follow_each_other_take_few_requests():
    asked = Asked()
    assert b"".join(asked.read(at, 64) for at in range(0, 400_000, 64)) == CONTENT[:400_000]
    assert len(asked.spans) < 8


def test_short_reads_far_from_each_other_take_little():
    asked = Asked()
    for at in range(0, SIZE, 100_000):
        assert asked.read(at, 100) == CONTENT[at : at + 100]
    assert asked.total <= len(asked.spans) * (16 << 10)


def test_a_file_ends_where_it_ends():
    asked = Asked()
    assert asked.read(SIZE - 3, 10) == CONTENT[-3:]
    assert asked.read(SIZE, 10) == b""
    assert asked.read(SIZE + 5, 10) == b""


def test_many_announcements_are_read_without_asking_again():
    asked = Asked()
    for at in range(0, SIZE, 1000):
        asked.ranges.expect(at, at + 40)
    for at in range(0, SIZE, 1000):
        assert asked.read(at, 40) == CONTENT[at : at + 40]


def test_an_announcement_of_which_some_is_there_is_of_the_rest():
    asked = Asked()
    assert asked.read(0, 300_000) == CONTENT[:300_000]  # kept for nobody
    asked.ranges.order(0, 50_000)
    asked.ranges.expect(20_000, 90_000)
    assert asked.read(0, 90_000) == CONTENT[:90_000]
    assert sorted(asked.spans[1:]) == [(0, 50_000), (50_000, 90_000)]


def test_what_nobody_reads_any_more_holds_back_nothing():
    pool = Pool()
    unread, read = Asked(1 << 40), Asked()
    unread.ranges, read.ranges = (
        Ranges(each.ranges.size, each.fetch, pool) for each in (unread, read)
    )
    for start in range(0, 400 << 20, 2 << 20):
        unread.ranges.expect(start, start + (2 << 20))
    read.ranges.expect(0, 100)
    unread.ranges.withdraw()
    deadline = time.monotonic() + 30
    while not read.spans and time.monotonic() < deadline:
        time.sleep(0.01)
    assert read.spans == [(0, 100)]
    assert len(unread.spans) < 100
    assert read.read(0, 100) == CONTENT[:100]


def test_what_was_read_makes_room_for_what_waits_to_be_read():
    size = 200 << 20
    content = memoryview(bytes(1 << 20))
    spans = []

    def fetch(start, stop):
        spans.append((start, stop))
        return content[: stop - start]

    ranges = Ranges(size, fetch, Pool())
    for at in range(0, size, 1 << 19):
        ranges.expect(at, at + (1 << 19))
    for at in range(0, size, 1 << 15):  # some of each, so that all are kept
        if at % (1 << 19) == 0:
            time.sleep(0.002)  # all that may be on its way is
        ranges.read(at, memoryview(bytearray(8)))
    assert sum(stop - start for start, stop in spans) < 1.1 * size


def test_requests_one_after_the_other_are_made_by_one_thread():
    asked, threads = Asked(), set()
    fetch = asked.ranges._fetch

    def note(start, stop):
        threads.add(threading.get_ident())
        return fetch(start, stop)

    asked.ranges._fetch = note
    for at in range(0, SIZE, 50_000):
        asked.ranges.order(at, at + 10)
        assert asked.read(at, 10) == CONTENT[at : at + 10]
    assert len(threads) <= 3  # and not one for each of 21


def test_thousands_of_short_requests_are_under_way_side_by_side():
    asked = Slow()
    for at in range(0, SIZE, 5_000):
        asked.ranges.expect(at, at + 9)
    for at in range(0, SIZE, 5_000):
        assert asked.read(at, 9) == CONTENT[at : at + 9]
    assert asked.most > 60


numbered = st.tuples(st.integers(-3, -1), st.integers(0, 3 << 20), st.integers(1, 4096))


@given(st.lists(numbered, max_size=40))
def test_spans_that_are_joined_hold_all_of_them(found):
    spans = [(number, start, start + size) for number, start, size in found]
    joined = join_near(spans)
    assert len(joined) <= len(spans)
    for number, start, stop in spans:
        assert any(n == number and a <= start and stop <= b for n, a, b in joined)
    assert sum(stop - start for _, start, stop in joined) <= 132_000 * len(spans)
    assert all(stop - start <= 512 << 10 for _, start, stop in joined)


def test_spans_are_joined_where_they_are_near_and_stay_in_the_order_of_reading():
    far = 1 << 20
    spans = [(-2, far, far + 9), (-1, 0, 10), (-2, 0, 10), (-1, 60, 70), (-2, far + 50, far + 60)]
    assert join_near(spans) == [(-2, far, far + 60), (-1, 0, 70), (-2, 0, 10)]


def test_what_failed_is_asked_for_again():
    asked = Asked()
    fetch, failures = asked.ranges._fetch, [StoreError("gone")]

    def fail(start, stop):
        if failures:
            raise failures.pop()
        return fetch(start, stop)

    asked.ranges._fetch = fail
    with pytest.raises(StoreError, match="gone"):
        asked.read(0, 10)
    assert asked.read(0, 10) == CONTENT[:10]


class Slow(Asked):
    """Asks that take a while; ``most``: how many there were at a time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def fetch(self, start, stop):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.05)
        with self.lock:
            self.now -= 1
        return super().fetch(start, stop)


def test_as_many_requests_are_under_way_as_there_is_something_to_ask():
    together = threading.Barrier(16)

    class Together(Asked):
        def fetch(self, start, stop):
            together.wait(30)
            return super().fetch(start, stop)

    asked = Together()
    for start in range(0, SIZE, SIZE // 16):
        asked.ranges.order(start, start + SIZE // 16)
    assert asked.read(0, SIZE) == CONTENT


def test_who_waits_is_told_that_nobody_wants_it_any_more():
    begun, never = threading.Event(), threading.Event()

    def wait(start, stop):
        begun.set()
        never.wait(30)
        return memoryview(CONTENT[start:stop])

    pool = Pool()
    ranges = Ranges(SIZE, wait, pool)
    with ThreadPoolExecutor(2) as readers:
        waiting = [
            readers.submit(ranges.read, at, memoryview(bytearray(9))) for at in (0, SIZE // 2)
        ]
        begun.wait(30)
        pool.stop()
        for each in waiting:
            with pytest.raises(StoreError, match="interrupted"):
                each.result(10)
        never.set()


SCRIPT = """
import subprocess
import sys
import threading
import time
from ckpt_tool.common.remote.pool import Pool
from ckpt_tool.common.remote.ranges import Ranges

ranges = Ranges(9, lambda start, stop: memoryview(b"123456789"[start:stop]), Pool())
go = threading.Event()

def read():
    go.wait()
    threading.main_thread().join()
    buffer = bytearray(9)
    ranges.read(0, memoryview(buffer))
    print(buffer.decode())

threading.Thread(target=read).start()
go.set()
"""


def test_a_thread_that_outlives_the_first_one_can_read():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "123456789\n"
