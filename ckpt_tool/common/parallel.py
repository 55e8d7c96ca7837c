"""Several processes that do one job, with several threads each: who does which part.

``torchrun`` (or ``srun`` with the same variables) says who is who: ``RANK``, ``WORLD_SIZE``,
``MASTER_ADDR``, ``MASTER_PORT``. Processes tell each other small Python values; tensors are
written by whoever has their files, straight to the shared file system. What fails in one process
fails in all, and where one is gone all stop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

from ckpt_tool.common.board import Board, GoneError
from ckpt_tool.common.errors import CkptError, LostError, UsageError
from ckpt_tool.common.launchers import (
    MAX_JOBS,
    find_place,
    is_parallel,
    read_count,
)
from ckpt_tool.common.packages import require_packages
from ckpt_tool.common.peers import Watch, watch_peers
from ckpt_tool.common.progress import NoProgress, Progress
from ckpt_tool.common.remote.sending import decode, encode

T = TypeVar("T")

_JOIN_SECONDS = 300
_PART_SECONDS = 6.0  # those that are there have heard by then who is not


class PeerError(CkptError):
    """Another process failed, and says why itself."""


class World:
    """The processes of this run; by itself one alone, which never waits."""

    rank = 0
    size = 1

    def everyone(self, work: Callable[[], T]) -> list[T]:
        """Do ``work`` in every process; all results, by rank.

        Raises what ``work`` raised here, or PeerError where it failed in another process only.
        """
        return [work()]

    def first(self, work: Callable[[], T]) -> T:
        """Do ``work`` in the first process only; its result, everywhere. Raises as `everyone`."""
        return cast(T, self.everyone(lambda: work() if self.rank == 0 else None)[0])

    def each(self, work: Callable[[], T]) -> T:
        """Do ``work`` in every process; this one's result, once all have theirs.

        Nothing is sent round but failures. Raises as `everyone`.
        """
        found: list[T] = []
        self.everyone(lambda: found.append(work()))
        return found[0]

    def share(self, sizes: Sequence[int]) -> list[int]:
        """The numbers of the items that this process does, so that all have about as many bytes.

        The largest item first, each to the process with the least so far: the same everywhere.
        """
        loads = [0] * self.size
        mine = []
        for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
            rank = loads.index(min(loads))
            loads[rank] += sizes[index]
            if rank == self.rank:
                mine.append(index)
        return sorted(mine)


class _Group(World):
    """Processes that tell each other on a ``board``, each of which ``watch`` looks after."""

    def __init__(self, rank: int, size: int, board: Board, watch: Watch) -> None:
        self.rank = rank
        self.size = size
        self.watch = watch
        self._board = board
        board.listen = self._listen

    def everyone(self, work: Callable[[], T]) -> list[T]:
        value, error = b"", None
        try:
            with self.watch.work():
                value = encode(work())  # what cannot be sent has failed here
        except BaseException as failure:
            error = failure
        if isinstance(error, KeyboardInterrupt) and self.watch.lost:
            raise LostError(self.watch.lost, self.rank) from error
        if isinstance(error, KeyboardInterrupt) and self.watch.failed:
            error = None  # it is another one's, which says it
        if error is not None:
            self.watch.tell_failure()
        outcomes = self._exchange((value, None if error is None else _said(error)))
        if error is not None:
            raise error
        failed = [f"rank {rank}: {said}" for rank, (_, said) in enumerate(outcomes) if said]
        if failed:
            raise PeerError("; ".join(failed))
        return [decode(result) for result, _ in outcomes]

    def _exchange(self, value: Any) -> list[Any]:
        try:
            return self._board.exchange(value)
        except GoneError as error:
            raise LostError(self.watch.name(error.rank), self.rank) from error

    def _listen(self) -> None:
        if self.watch.lost:
            raise LostError(self.watch.lost, self.rank)


ALONE = World()


@dataclass(frozen=True)
class Team:
    """Who works: the processes, the threads of this one, and whom it tells of its progress."""

    world: World
    jobs: int
    progress: Progress


@contextmanager
def join_world() -> Iterator[World]:
    """The world that the environment describes; :data:`ALONE` outside of torchrun.

    UsageError where the variables make no sense or the other processes do not come, and where
    there are others and nothing says how to find them. LostError where one is gone meanwhile.
    """
    place = find_place()
    if place is None:
        yield ALONE
        return
    rank, size = place
    with _meet(rank, size) as (board, watch):
        try:
            yield _Group(rank, size, board, watch)
        except KeyboardInterrupt as error:
            if not watch.lost:
                raise
            raise LostError(watch.lost, rank) from error


@contextmanager
def _meet(rank: int, size: int) -> Iterator[tuple[Board, Watch]]:
    """Where all processes are, and while they are."""
    require_packages("A run of several processes", ["torch"])
    # Before torch is imported: where a connection is closed it would show every frame of its own.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed.rendezvous import rendezvous

    began = time.monotonic()
    try:
        timeout = timedelta(seconds=_JOIN_SECONDS)
        store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
        board = Board(store, rank, size)
        board.exchange(None)
        watch = watch_peers(board.start, rank, size)
    except (RuntimeError, ValueError, GoneError) as error:
        raise UsageError(
            f"rank {rank} of {size} did not find the others ({time.monotonic() - began:.0f} s of"
            f" {_JOIN_SECONDS} s): {error}",
            hint="Start all of them with torchrun, or set WORLD_SIZE=1 to run one process.",
        ) from error
    try:
        yield board, watch
    finally:
        watch.leave()
        board.leave(_PART_SECONDS if watch.lost else _JOIN_SECONDS)


@contextmanager
def join_team(jobs: int, progress: Progress | None) -> Iterator[Team]:
    """The team of :func:`join_world`'s processes, each with ``jobs`` threads, 0 for the default.

    Raises what joining does, UsageError where ``jobs`` makes no sense.
    """
    with join_world() as world:
        yield Team(world, choose_jobs(jobs), progress or NoProgress())


def form_team_alone(jobs: int, progress: Progress | None = None) -> Team:
    """The team of this process alone, as :func:`join_team` makes one."""
    return Team(ALONE, choose_jobs(jobs), progress or NoProgress())


def choose_jobs(wanted: int) -> int:
    """``wanted`` threads, or for 0 the default; UsageError for less, or more than MAX_JOBS.

    The default is one per core, at least two: they keep a disk busy; more than four gain nothing.
    Processes of one run that share a machine share its cores.
    """
    if not 0 <= wanted <= MAX_JOBS:
        raise UsageError(f"`jobs={wanted}`: expected 1 to {MAX_JOBS}, or 0 for one per core")
    return wanted or min(4, max(2, len(os.sched_getaffinity(0)) // count_local()))


def count_local() -> int:
    """How many processes of this run share the machine."""
    return (read_count("LOCAL_WORLD_SIZE") if is_parallel() else None) or 1


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
