"""Writing one planned file block by block, in a few threads, with its hash.

A block is a fixed 2 MiB range of the output file: filled from the sources, hashed while it is in
cache, and written into preallocated space. Blocks are taken in order and finish in any; the file's
digest is made of the blocks' digests, so it depends on neither.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import xxhash

from ckpt_tool.common.threads import Threads
from ckpt_tool.tensors.ahead import Ahead, Read, list_reads
from ckpt_tool.tensors.blocks import BLOCK_BYTES, BlockReader, FileTable
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.rounding import CastError, CastErrors
from ckpt_tool.writers.crc import PieceSums
from ckpt_tool.writers.outfile import Output, allocate_aligned
from ckpt_tool.writers.planned import PlannedFile, Seal

#: Blocks are filled in pairs: a strided tensor has as many pieces in two blocks as in one.
_TASK_BYTES = 2 * BLOCK_BYTES

#: Threads that wait for the disk while the others fill the next blocks.
_WAITING = 2

#: What ``digest`` means, for the manifest.
DIGEST = f"xxh3-128 of the xxh3-128 digests of the file's {BLOCK_BYTES >> 20} MiB blocks"


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that is on disk.

    ``cast_errors``: the largest absolute rounding error known when it was finished, as
    (source dtype, target dtype, error). ``spoilt``: names of tensors that have elements that are
    not finite, computed from finite ones or cast from them.
    """

    name: str
    size: int
    digest: str
    cast_errors: tuple[CastError, ...] = ()
    spoilt: tuple[str, ...] = ()


def digest_file(path: Path) -> str:
    """The digest (see :data:`DIGEST`) of a file on disk; OSError where it cannot be read."""
    whole = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            whole.update(xxhash.xxh3_128_digest(block))
    return whole.hexdigest()


def digest_bytes(content: bytes) -> str:
    """The digest that a file with this content has."""
    whole = xxhash.xxh3_128()
    for at in range(0, len(content), BLOCK_BYTES):
        whole.update(xxhash.xxh3_128_digest(content[at : at + BLOCK_BYTES]))
    return whole.hexdigest()


def estimate_buffers(jobs: int, *, direct: bool, casting: bool) -> int:
    """Memory that writing takes, whatever is written: a task per thread, and room to cast it."""
    scratch = (2 * BLOCK_BYTES + 3 * BLOCK_BYTES // 2) if casting else 0
    return (jobs + (_WAITING if direct else 0)) * _TASK_BYTES + jobs * scratch


def count_tasks(size: int) -> int:
    """How many threads a file of ``size`` bytes keeps busy at most."""
    return max(1, -(-size // _TASK_BYTES))


class StreamWriter:
    """Writes planned files with ``jobs`` threads; use as a context manager.

    ``direct``: files are written past the page cache, so that threads wait for the disk.
    ``errors``: how much casts changed elements, measured here or by the run that is resumed.
    """

    def __init__(
        self, files: FileTable, jobs: int, advance: Callable[[int], None], *, direct: bool = False
    ) -> None:
        self.advance = advance
        self._threads = jobs + (_WAITING if direct else 0)
        self._pool = Threads(self._threads, "ckpt-write")
        self._readers: SimpleQueue[BlockReader] = SimpleQueue()
        self.errors = CastErrors()
        for _ in range(jobs):
            self._readers.put(BlockReader(files, self.errors))
        self._local = threading.local()
        self._stop = threading.Event()

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True)

    def write(self, file: Output, plan: PlannedFile) -> WrittenFile:
        """Write ``plan`` to ``file``, which is then still open, and has yet to settle.

        OSError where the disk is full or a source cannot be read; the file is then incomplete, and
        closed. Raises also what ``file`` does.
        """
        tasks: list[Future[None]] = []
        try:
            work = _Work(plan, file, self._stop)
            for _ in range(self._threads):
                tasks.append(self._pool.submit(self._write_blocks, work))
            for task in as_completed(tasks):
                task.result()
            file.finish()
        except BaseException:
            self._stop.set()
            file.stop()
            wait(tasks)  # the descriptor's number must not be reused under a running thread
            file.close()
            raise
        whole = xxhash.xxh3_128(b"".join(work.digests))
        spoilt = tuple(sorted(work.spoilt))
        errors = self.errors.listed()
        return WrittenFile(plan.name, plan.size, whole.hexdigest(), errors, spoilt)

    def _write_blocks(self, work: _Work) -> None:
        if not hasattr(self._local, "buffer"):
            self._local.buffer = allocate_aligned(_TASK_BYTES)
        buffer = self._local.buffer
        try:
            while not self._stop.is_set():
                start, length = self._next_task(work, buffer)
                if not length:
                    break
                work.file.write(buffer, length, start)
                self.advance(length)
        except BaseException:
            self._stop.set()
            raise

    def _next_task(self, work: _Work, buffer: memoryview) -> tuple[int, int]:
        """Fill ``buffer`` with the next task; its place in the file and its length, 0 at the end.

        As many threads as there are readers do this at a time. A task is taken by a thread that
        has its reader already, so that whoever waits for earlier ones waits for running threads.
        """
        reader = self._readers.get()
        try:
            start = work.take()
            task = buffer[: max(0, min(_TASK_BYTES, work.plan.size - start))]
            self._fill(reader, work, start, task)
            for at in range(0, len(task), BLOCK_BYTES):
                block = task[at : at + BLOCK_BYTES]
                work.digests[(start + at) // BLOCK_BYTES] = xxhash.xxh3_128_digest(block)
            return start, len(task)
        finally:
            self._readers.put(reader)

    def _fill(self, reader: BlockReader, work: _Work, start: int, block: memoryview) -> None:
        """Put bytes ``[start, start + len(block))`` of the planned file into ``block``.

        The CRC of a tensor is complete only when its earlier blocks are: other threads have taken
        those already, so waiting for them ends. Seals are put in last, after this block's own part.
        """
        plan, stop = work.plan, start + len(block)
        seals = []
        for index, begin, end in plan.spans(start, stop):
            item, part = plan.items[index], block[begin - start : end - start]
            skipped = begin - plan.starts[index]
            if isinstance(item, bytes):
                part[:] = item[skipped : skipped + len(part)]
            elif isinstance(item, Seal):
                seals.append((index, item, skipped, part))
            else:
                size = item.dtype.itemsize
                reader.read(item, skipped // size, (skipped + len(part)) // size, part)
                if reader.take_spoilt():
                    work.spoilt.add(plan.name_item(index))
                if index + 1 in work.sealed:
                    work.sums.add(index, skipped, part)
        for index, seal, skipped, part in seals:
            part[:] = work.sealed_bytes(index, seal)[skipped : skipped + len(part)]


class _Work:
    """One file that threads are writing."""

    def __init__(self, plan: PlannedFile, file: Output, stop: threading.Event) -> None:
        self.plan = plan
        self.file = file
        self.digests = [b""] * -(-plan.size // BLOCK_BYTES)
        self.sums = PieceSums(stop.is_set)
        self.spoilt: set[str] = set()
        self.sealed = {
            index for index, item in enumerate(plan.items) if isinstance(item, Seal) and item.places
        }
        self._seals: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._starts = Ahead(range(0, plan.size, _TASK_BYTES), self._list_reads)

    def take(self) -> int:
        """Where the next task begins; the file's size where none is left."""
        return self._starts.take(self.plan.size)

    def _list_reads(self, start: int) -> Iterator[Read]:
        for index, begin, end in self.plan.spans(start, start + _TASK_BYTES):
            item = self.plan.items[index]
            if isinstance(item, LazyTensor):
                at, size = self.plan.starts[index], item.dtype.itemsize
                yield from list_reads(item, (begin - at) // size, (end - at) // size)

    def sealed_bytes(self, index: int, seal: Seal) -> bytes:
        """The bytes of the seal that is item ``index``, with the CRC-32 of the item before it."""
        if not seal.places:
            return seal.content
        with self._lock:  # a seal may lie in two blocks; who waits here has given its own part
            if index not in self._seals:
                size = self.plan.starts[index] - self.plan.starts[index - 1]
                found = self.sums.whole(index - 1, size).to_bytes(4, "little")
                content = bytearray(seal.content)
                for place in seal.places:
                    content[place : place + 4] = found
                self._seals[index] = bytes(content)
            return self._seals[index]
