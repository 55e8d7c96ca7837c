"""Threads where memory ends: they run or are refused, and nobody waits for one that is gone."""

import subprocess
import sys
import threading

import pytest

from ckpt_tool.common.threads import Threads
from tests.common.test_parallel import PROJECT

#: Asks for threads within ever closer limits of memory around that at which they start to fit.
#: Each limit is a process's own, which has five seconds.
_LIMITS = """
import os, resource, signal, sys
from threading import Thread
from ckpt_tool.common.threads import Threads, start

def use_pool():
    with Threads(THREADS) as pool:
        list(pool.map(lambda _: bytearray(3 << 20), range(2 * THREADS)))

def use_thread():
    thread = Thread(target=bytearray, args=[3 << 20])
    start(thread)
    thread.join()

def fits(room):
    child = os.fork()
    if child:
        end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert end in (0, 3), f"with {room} bytes of room: {end}"
        return end == 0
    signal.alarm(5)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # threads without memory say so as they end
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        USE()
    except (MemoryError, RuntimeError):
        os._exit(3)
    os._exit(0)

few, enough = 0, 1 << 30
assert not fits(few) and fits(enough)
while enough - few > 4096:
    middle = (few + enough) // 8192 * 4096
    few, enough = (few, middle) if fits(middle) else (middle, enough)
for room in range(few - (128 << 10), few + (128 << 10), 8192):
    fits(room)
"""


@pytest.mark.parametrize(
    ("use", "threads"), [("use_pool", 1), ("use_pool", 2), ("use_pool", 7), ("use_thread", 1)]
)
def test_whatever_memory_there_is_threads_start_or_are_refused(use: str, threads: int) -> None:
    script = _LIMITS.replace("THREADS", str(threads)).replace("USE", use)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_thread_of_a_pool_runs_at_once() -> None:
    """Each waits for all the others, which would have no end if one were missing."""
    script = (
        "from threading import Barrier; from ckpt_tool.common.threads import Threads;"
        "barrier = Barrier(5); pool = Threads(5);"
        "print(sum(pool.map(lambda _: barrier.wait(10), range(5))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "10\n"


@pytest.mark.parametrize(("count", "tasks", "expected"), [(8, 3, 3), (2, 9, 2), (4, 0, 1)])
def test_no_pool_has_more_threads_than_tasks(count: int, tasks: int, expected: int) -> None:
    before = threading.active_count()
    with Threads(count, tasks=tasks):
        assert threading.active_count() - before == expected


def test_what_flows_comes_in_its_order_and_is_not_begun_at_once() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        return number * number

    with Threads(2) as pool:
        found = pool.flow(work, range(10_000))
        assert [next(found) for _ in range(5)] == [0, 1, 4, 9, 16]
        assert len(begun) < 20
        assert list(found) == [number * number for number in range(5, 10_000)]
    assert sorted(begun) == list(range(10_000))


def test_nothing_is_begun_after_a_failure() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 3:
            raise ValueError("three")

    with Threads(2) as pool, pytest.raises(ValueError, match="three"):
        list(pool.flow(work, range(10_000)))
    assert len(begun) < 20
