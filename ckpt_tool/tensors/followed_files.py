"""Files that are read, and held against their checksums on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from ckpt_tool.common.parallel import Team
from ckpt_tool.common.remote.files import are_there
from ckpt_tool.common.threads import Threads
from ckpt_tool.tensors.ahead import Read, flow_ahead
from ckpt_tool.tensors.blocks import FileTable
from ckpt_tool.tensors.read_sums import Gap, ReadSums
from ckpt_tool.tensors.strided_reads import Part

_STEP = 1 << 20  # bytes per read: they are in the second-level cache when they are summed up
_SPAN = 64 << 20  # bytes per task
_REMOTE_SPAN = 4 << 20

#: Shorter runs are not followed: a block may have a thousand of them.
_SHORT_RUN = 4 << 10


class FollowedFiles(FileTable):
    """Descriptors by path, with ``sums`` told of all that is read through them."""

    def __init__(self, sums: ReadSums) -> None:
        super().__init__(passes=True)
        self._sums = sums

    def read(self, path: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from byte ``offset`` of ``path``; FormatError where the file ends."""
        super().read(path, offset, buffer)
        self._sums.note(path, offset, buffer)

    def read_runs(
        self, path: str, offset: int, buffer: memoryview, run: int, starts: Iterable[int]
    ) -> None:
        """The same, followed without what lies between the runs: that is read for others, too."""
        super().read(path, offset, buffer)
        if run < _SHORT_RUN and run < len(buffer):
            starts, run = (0,), 0  # only that something of it was read
        for start in starts:
            self._sums.note(path, offset + start, buffer[start : start + run])

    def read_each(self, path: str, parts: Iterable[Part]) -> None:
        """The same, each followed."""
        for offset, buffer in parts:
            self.read(path, offset, buffer)


def read_gaps(
    gaps: Iterable[Gap], sums: ReadSums, jobs: int, advance: Callable[[int], None]
) -> None:
    """Read ``gaps`` with ``jobs`` threads, ``sums`` told of it.

    ``advance`` is told the bytes. OSError and FormatError where a file cannot be read.
    """
    local = threading.local()
    spans = list(_cut(gaps, _SPAN if not are_there() else _REMOTE_SPAN))
    with FollowedFiles(sums) as files, Threads(jobs, tasks=len(spans)) as pool:

        def read(span: Gap) -> None:
            if not hasattr(local, "buffer"):
                local.buffer = memoryview(bytearray(_STEP))
            for done in range(0, span.size, _STEP):
                part = local.buffer[: min(_STEP, span.size - done)]
                files.read(span.path, span.start + done, part)
                advance(len(part))

        try:
            for _ in flow_ahead(pool, read, spans, lambda span: [_make_read(span)]):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _cut(gaps: Iterable[Gap], most: int) -> Iterator[Gap]:
    """The same bytes in spans for one thread, so that one large record keeps every thread busy."""
    for path, start, size in gaps:
        for at in range(0, size, most):
            yield Gap(path, start + at, min(most, size - at))


def _make_read(span: Gap) -> Read:
    return Read(span.path, span.start, span.start + span.size)


def prove(read: ReadSums, gaps: Sequence[Gap], team: Team) -> int:
    """Read the gaps of records, each process of the team its share; how many bytes.

    All gaps of a record are one process's: what two of them had put together with what both know
    would overlap. OSError and FormatError where a file cannot be read.
    """
    records = [list(found) for _, found in groupby(gaps, read.find)]
    sizes = [sum(gap.size for gap in found) for found in records]
    numbers = team.world.share(sizes)
    share = [gap for number in numbers for gap in records[number]]
    team.progress.start("checksums", sum(sizes[number] for number in numbers))
    team.world.each(lambda: read_gaps(share, read, team.jobs, team.progress.advance))
    exchange(read, team)
    return sum(sizes)


def exchange(read: ReadSums, team: Team) -> None:
    """All processes of the team learn what each has found."""
    if team.world.size > 1:
        read.learn(team.world.everyone(read.findings))
