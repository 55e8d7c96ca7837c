"""Writing one planned file block by block, in a few threads, with its hash.

A block is a fixed 2 MiB range of the output file: filled from the sources, hashed while it is in
cache, and written into preallocated space. Blocks are taken in order and finish in any; the file's
digest is made of the blocks' digests, so it depends on neither.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import xxhash

from ckpt_tool.blocks import BLOCK_BYTES, BlockReader, FileTable
from ckpt_tool.lazy import LazyTensor
from ckpt_tool.writers.crc import PieceSums
from ckpt_tool.writers.planned import PlannedFile, Seal

#: Blocks are filled in pairs: a strided tensor has as many pieces in two blocks as in one.
_TASK_BYTES = 2 * BLOCK_BYTES

#: Bytes per write. The page cache takes pages as large as a write and its alignment allow, and
#: large ones are rarely at hand (on a virtual machine they come from memory that was given back to
#: the host): whole, aligned blocks took three times as long as blocks whose first page is written
#: on its own, which leaves the rest unaligned.
_WRITE_BYTES = 1 << 20
_FIRST_BYTES = 4 << 10

#: What ``digest`` means, for the manifest.
DIGEST = f"xxh3-128 of the xxh3-128 digests of the file's {BLOCK_BYTES >> 20} MiB blocks"


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that is on disk.

    ``cast_errors``: the largest absolute rounding error known when it was finished, as
    (source dtype, target dtype, error).
    """

    name: str
    size: int
    digest: str
    cast_errors: tuple[tuple[str, str, float], ...] = ()


def digest_file(path: Path) -> str:
    """The digest (see :data:`DIGEST`) of a file on disk; OSError where it cannot be read."""
    whole = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            whole.update(xxhash.xxh3_128_digest(block))
    return whole.hexdigest()


def buffer_bytes(jobs: int, *, casting: bool) -> int:
    """Memory that writing takes, whatever is written: a block per thread, and room to cast it."""
    scratch = (2 * BLOCK_BYTES + 3 * BLOCK_BYTES // 2) if casting else 0
    return jobs * (_TASK_BYTES + scratch)


class StreamWriter:
    """Writes planned files with ``jobs`` threads; use as a context manager.

    ``cast_errors`` maps (source, target) dtype names to the largest absolute rounding error.
    """

    def __init__(self, files: FileTable, jobs: int, advance: Callable[[int], None]) -> None:
        self._files = files
        self._jobs = jobs
        self._advance = advance
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="ckpt-write")
        self._local = threading.local()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.cast_errors: dict[tuple[str, str], float] = {}

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True)

    def learn(self, cast_errors: Sequence[tuple[str, str, float]]) -> None:
        """Raise the known errors to these, measured here or by the run that is resumed."""
        for source, target, error in cast_errors:
            key = (source, target)
            self.cast_errors[key] = max(error, self.cast_errors.get(key, 0.0))

    def write(self, path: Path, plan: PlannedFile) -> tuple[int, WrittenFile]:
        """Write ``plan`` to ``path``; returns the open descriptor (not yet synced) and the result.

        OSError where the disk is full or a source cannot be read; the file is then incomplete.
        """
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        tasks: list[Future[None]] = []
        try:
            _preallocate(descriptor, plan.size)
            work = _Work(plan, descriptor, self._stop)
            for _ in range(self._jobs):
                tasks.append(self._pool.submit(self._write_blocks, work))
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            self._stop.set()
            wait(tasks)  # the descriptor's number must not be reused under a running thread
            os.close(descriptor)
            raise
        whole = xxhash.xxh3_128(b"".join(work.digests))
        errors = tuple((*key, error) for key, error in sorted(self.cast_errors.items()))
        return descriptor, WrittenFile(plan.name, plan.size, whole.hexdigest(), errors)

    def _write_blocks(self, work: _Work) -> None:
        reader, buffer = self._thread_state()
        size = work.plan.size
        try:
            while (start := next(work.numbers) * _TASK_BYTES) < size and not self._stop.is_set():
                task = buffer[: min(_TASK_BYTES, size - start)]
                self._fill(reader, work, start, task)
                for at in range(0, len(task), BLOCK_BYTES):
                    block = task[at : at + BLOCK_BYTES]
                    work.digests[(start + at) // BLOCK_BYTES] = xxhash.xxh3_128_digest(block)
                _write_all(work.descriptor, task, start)
                self._advance(len(task))
        except BaseException:
            self._stop.set()
            raise

    def _thread_state(self) -> tuple[BlockReader, memoryview]:
        if not hasattr(self._local, "reader"):
            self._local.reader = BlockReader(self._files)
            self._local.buffer = memoryview(bytearray(_TASK_BYTES))
        return self._local.reader, self._local.buffer

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
                self._read(reader, item, (skipped // size, (skipped + len(part)) // size), part)
                if index + 1 in work.sealed:
                    work.sums.add(index, skipped, part)
        for index, seal, skipped, part in seals:
            part[:] = work.sealed_bytes(index, seal)[skipped : skipped + len(part)]

    def _read(
        self, reader: BlockReader, tensor: LazyTensor, span: Sequence[int], out: memoryview
    ) -> None:
        if tensor.dtype == tensor.source_dtype:
            reader.read(tensor, span[0], span[1], out)
            return
        key = (tensor.source_dtype.name, tensor.dtype.name)
        known = self.cast_errors.get(key, 0.0)
        error = reader.read(tensor, span[0], span[1], out, known)
        if error > self.cast_errors.get(key, -1.0):
            with self._lock:
                self.learn([(*key, error)])


class _Work:
    """One file that threads are writing."""

    def __init__(self, plan: PlannedFile, descriptor: int, stop: threading.Event) -> None:
        self.plan = plan
        self.descriptor = descriptor
        self.numbers = count()
        self.digests = [b""] * -(-plan.size // BLOCK_BYTES)
        self.sums = PieceSums(stop.is_set)
        self.sealed = {
            index for index, item in enumerate(plan.items) if isinstance(item, Seal) and item.places
        }
        self._seals: dict[int, bytes] = {}
        self._lock = threading.Lock()

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


def _write_all(descriptor: int, block: memoryview, offset: int) -> None:
    done, limit = 0, _FIRST_BYTES
    while done < len(block):
        done += os.pwrite(descriptor, block[done : done + limit], offset + done)
        limit = _WRITE_BYTES


def _preallocate(descriptor: int, size: int) -> None:
    """Reserve the space, so that a full disk is met before the work and extents are long.

    Not ``os.posix_fallocate``: where the file system cannot, the C library would write every
    block of the file.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if call is not None and call(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
        return
    if call is not None and ctypes.get_errno() in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.ftruncate(descriptor, size)
