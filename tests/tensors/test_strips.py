"""Strips that threads read together: once, whole, and in bounded memory."""

from collections.abc import Callable
from threading import Barrier, Event, Thread

import numpy as np
import pytest

from ckpt_tool.common.threads import Threads
from ckpt_tool.tensors import strips
from ckpt_tool.tensors.strips import Strips

SHAPE = (6, 4)
MATRIX = np.arange(24, dtype="<u2").reshape(SHAPE)


@pytest.fixture(autouse=True)
def _rows_one_by_one(monkeypatch) -> None:
    monkeypatch.setattr(strips, "_PART", 1)


def put_rows(told: list[int], add: int = 0) -> Callable[[int, int, memoryview], None]:
    """What fills rows, and says which."""

    def read(first: int, last: int, out: memoryview) -> None:
        told.extend(range(first, last))
        out[:] = (MATRIX[first:last] + add).astype("<u2").tobytes()

    return read


def test_what_is_there_is_not_read_again() -> None:
    found, told = Strips(), list[int]()
    for _ in range(3):
        with found.take("a", SHAPE, "<u2", put_rows(told)) as matrix:
            assert (matrix == MATRIX).all()
    assert told == list(range(6))


def test_each_row_is_read_by_one_thread_and_all_wait_for_all_rows() -> None:
    found, told, together = Strips(), list[int](), Barrier(3)

    def take(_: int) -> bool:
        together.wait()
        with found.take("a", SHAPE, "<u2", put_rows(told)) as matrix:
            return bool((matrix == MATRIX).all())

    with Threads(3) as pool:
        assert list(pool.flow(take, range(3))) == [True] * 3
    assert sorted(told) == list(range(6))


def test_who_waits_for_a_thread_that_cannot_read_reads_by_itself() -> None:
    found, told, begun, go = Strips(), list[int](), Event(), Event()

    def fail(first: int, last: int, out: memoryview) -> None:
        begun.set()
        assert go.wait(30)
        raise OSError("no such row")

    def take_failing() -> None:
        with found.take("a", SHAPE, "<u2", fail):
            pass

    def let_go(first: int, last: int, out: memoryview) -> None:
        put_rows(told)(first, last, out)
        if first == 5:  # the other rows are there; now the first one fails
            go.set()

    def take_after() -> None:
        with found.take("a", SHAPE, "<u2", let_go) as matrix:
            seen.append(matrix.copy())

    with Threads(1) as pool:
        failing = pool.submit(take_failing)
        assert begun.wait(30)
        # Were the strip that failed kept, this thread would ask for it without end.
        waiting, seen = Thread(target=take_after, daemon=True), list[np.ndarray]()
        waiting.start()
        waiting.join(30)
        assert not waiting.is_alive()
        assert (seen[0] == MATRIX).all()
        with pytest.raises(OSError, match="no such row"):
            failing.result()
    assert told == [1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]


def test_the_oldest_that_nobody_uses_makes_room(monkeypatch) -> None:
    monkeypatch.setattr(strips, "_MOST", 2 * MATRIX.nbytes)
    found, told = Strips(), list[int]()

    def take(key: str) -> int:
        told.clear()
        with found.take(key, SHAPE, "<u2", put_rows(told, ord(key))) as matrix:
            assert (matrix == MATRIX + ord(key)).all()
            return len(told)

    assert [take(key) for key in "abab"] == [6, 6, 0, 0]
    assert [take(key) for key in "cb"] == [6, 0]  # in place of a
    assert take("a") == 6  # in place of c
    with found.take("b", SHAPE, "<u2", put_rows(told)) as kept:
        assert [take(key) for key in "cda"] == [6, 6, 6]
        assert (kept == MATRIX + ord("b")).all()


def test_who_would_be_one_too_many_waits(monkeypatch) -> None:
    monkeypatch.setattr(strips, "_MOST_USED", 2 * MATRIX.nbytes)
    found, done = Strips(), list[str]()

    def take(key: str) -> None:
        with found.take(key, SHAPE, "<u2", put_rows([])):
            done.append(key)

    with Threads(2) as pool:
        with (
            found.take("a", SHAPE, "<u2", put_rows([])),
            found.take("b", SHAPE, "<u2", put_rows([])),
            found.take("c", SHAPE, "<u2", put_rows([])),  # a thread does not wait for itself
        ):
            pool.submit(take, "a").result(30)
            waiting = pool.submit(take, "d")
            pool.submit(take, "b").result(30)
            done.append("left")
        waiting.result(30)
    assert done == ["a", "b", "left", "d"]


def test_one_that_is_larger_than_all_may_is_there_alone(monkeypatch) -> None:
    monkeypatch.setattr(strips, "_MOST_USED", 1)
    with Strips().take("a", SHAPE, "<u2", put_rows([])) as matrix:
        assert (matrix == MATRIX).all()
