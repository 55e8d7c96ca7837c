"""Teams of threads that work as processes under torchrun do, and what each was told to do."""

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ckpt_tool.common.parallel import PeerError, Team, World

T = TypeVar("T")


class Told:
    """A progress that remembers: each phase by name, its size, and what was done of it."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self._now: str | None = None
        self._lock = threading.Lock()

    def announce(self, work: str) -> None:
        assert work

    def start(self, what: str, total: int | None, unit: str = "bytes") -> None:
        if unit != "bytes" or total is None:  # nothing that is shared out
            self._now = None
            return
        assert what not in self.totals, "a phase has one start"
        self.totals[what], self.done[what], self._now = total, 0, what

    def advance(self, amount: int) -> None:
        with self._lock:
            if self._now is not None:
                self.done[self._now] += amount


class _Thread(World):
    """One of several threads that wait for each other where processes would."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: list[Any]) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._board = barrier, board

    def everyone(self, work: Callable[[], T]) -> list[T]:
        try:
            self._board[self.rank] = (pickle.dumps(work()), None)
        except Exception as error:
            self._board[self.rank] = (None, error)
        self._barrier.wait(60)
        found = list(self._board)
        self._barrier.wait(60)
        if found[self.rank][1] is not None:
            raise found[self.rank][1]
        if any(error for _, error in found):
            raise PeerError("another thread failed")
        return [pickle.loads(result) for result, _ in found]


def run_as_team(size: int, work: Callable[[Team], T], jobs: int = 1) -> list[tuple[T, Told]]:
    """What each of ``size`` members makes of ``work``, with what its progress was told."""
    barrier, board = threading.Barrier(size), [None] * size

    def run(rank: int) -> tuple[T, Told]:
        told = Told()
        return work(Team(_Thread(rank, size, barrier, board), jobs, told)), told

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
