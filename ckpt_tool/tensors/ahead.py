"""What tasks are going to read of remote files, ordered a little before they do.

A request takes long, and most tasks read a little of many files: so the bytes of several tasks that
follow each other are ordered together, where they touch in one request.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Generic, NamedTuple, TypeVar

from ckpt_tool.common.regular import order
from ckpt_tool.common.remote.files import are_there
from ckpt_tool.common.threads import Threads
from ckpt_tool.tensors.chunks import Chunked
from ckpt_tool.tensors.strided import cut_runs, fills_span, measure_span, order_dims

Task = TypeVar("Task")
Result = TypeVar("Result")

#: Bytes that are ordered together, and those that are on their way: a store sends those of one
#: request no faster than 50 MB/s, after a wait, so that it takes dozens of requests to fill a line.
_GROUP, _AHEAD = 4 << 20, 40 << 20
#: Where many files have a part of that, as with ranks of many GPUs: what one of them is asked for
#: at a time, and how much is ordered together for that.
_OF_A_FILE, _LARGEST_GROUP = 256 << 10, 24 << 20
#: Bytes between two reads that are not worth a request.
_GAP = 4 << 10


class Read(NamedTuple):
    """Bytes ``[start, stop)`` of a file."""

    path: str
    start: int
    stop: int


def order_ahead(
    tasks: Iterable[Task], list_reads: Callable[[Task], Iterable[Read]]
) -> Iterator[Task]:
    """The same tasks; what they read of remote files is on its way when they are taken.

    ``list_reads``: what a task reads, as far as that is known.
    """
    if not are_there():
        yield from tasks
        return
    waiting: deque[tuple[list[Task], int]] = deque()
    ahead = 0
    for group, reads in _group(tasks, list_reads):
        _order(reads)
        waiting.append((group, _measure(reads)))
        ahead += waiting[-1][1]
        while ahead > _AHEAD and len(waiting) > 1:
            first, size = waiting.popleft()
            yield from first
            ahead -= size
    yield from chain.from_iterable(group for group, _ in waiting)


class Ahead(Generic[Task]):
    """The same for threads, of which each takes the next task when it has time."""

    def __init__(self, tasks: Iterable[Task], list_reads: Callable[[Task], Iterable[Read]]) -> None:
        self._tasks = order_ahead(tasks, list_reads)
        self._lock = threading.Lock()

    def take(self, otherwise: Task) -> Task:
        """The next task; ``otherwise`` where none is left."""
        with self._lock:  # one thread at a time may ask a generator
            return next(self._tasks, otherwise)


def flow_ahead(
    pool: Threads,
    work: Callable[[Task], Result],
    tasks: Iterable[Task],
    list_reads: Callable[[Task], Iterable[Read]],
) -> Iterator[Result]:
    """What ``work`` makes of each task, in order, as :meth:`.Threads.flow` has it.

    Few tasks are taken ahead where files are remote: what they read is kept until they do.
    """
    ahead = 1 if are_there() else 4
    return pool.flow(work, order_ahead(tasks, list_reads), ahead)


def _group(
    tasks: Iterable[Task], list_reads: Callable[[Task], Iterable[Read]]
) -> Iterator[tuple[list[Task], list[Read]]]:
    group: list[Task] = []
    reads: list[Read] = []
    size = 0
    for task in tasks:
        found = [*list_reads(task)]
        group.append(task)
        reads += found
        size += _measure(found)
        if _is_full(size, reads):
            yield group, reads
            group, reads, size = [], [], 0
    yield group, reads


def _is_full(size: int, reads: Iterable[Read]) -> bool:
    if size < _GROUP or size >= _LARGEST_GROUP:
        return size >= _GROUP
    return size >= _OF_A_FILE * len({read.path for read in reads})


def _measure(reads: Iterable[Read]) -> int:
    return sum(read.stop - read.start for read in reads)


def _order(reads: Iterable[Read]) -> None:
    at: Read | None = None
    for read in sorted(reads):
        if at is not None and read.path == at.path and read.start <= at.stop + _GAP:
            at = Read(at.path, at.start, max(at.stop, read.stop))
            continue
        if at is not None:
            order(*at)
        at = read
    if at is not None:
        order(*at)


def list_reads(tensor: Chunked, start: int, stop: int) -> Iterator[Read]:
    """What reading elements ``[start, stop)`` of the row-major form takes, but of computed ones."""
    size = tensor.source_dtype.itemsize
    for piece in tensor.pieces(start, stop):
        path, offset, strides, computed = piece.region
        if computed is not None:
            continue
        if piece.is_run:
            yield Read(path, offset, offset + piece.volume * size)
            continue
        if fills_span(piece.sizes, strides):
            yield Read(path, offset, offset + measure_span(piece.sizes, strides) * size)
            continue
        order = order_dims(strides)
        sizes, steps = (tuple(each[dim] for dim in order) for each in (piece.sizes, strides))
        run, starts = cut_runs(sizes, steps, size)
        for at in starts:
            yield Read(path, offset + at, offset + at + run)
