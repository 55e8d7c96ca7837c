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
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import xxhash

from ckpt_tool.blocks import BLOCK_BYTES, BlockReader, FileTable
from ckpt_tool.lazy import LazyTensor

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
class PlannedFile:
    """A file to write: ``header``, then the tensors back to back, ``starts`` their positions.

    Every tensor starts at a multiple of its item size, so no block cuts an element.
    """

    name: str
    header: bytes
    names: tuple[str, ...]
    tensors: tuple[LazyTensor, ...]
    starts: tuple[int, ...]
    size: int


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
            digests = [b""] * -(-plan.size // BLOCK_BYTES)
            numbers = count()
            for _ in range(self._jobs):
                tasks.append(
                    self._pool.submit(self._write_blocks, descriptor, plan, numbers, digests)
                )
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            self._stop.set()
            wait(tasks)  # the descriptor's number must not be reused under a running thread
            os.close(descriptor)
            raise
        whole = xxhash.xxh3_128(b"".join(digests))
        errors = tuple((*key, error) for key, error in sorted(self.cast_errors.items()))
        return descriptor, WrittenFile(plan.name, plan.size, whole.hexdigest(), errors)

    def _write_blocks(
        self, descriptor: int, plan: PlannedFile, numbers: count[int], digests: list[bytes]
    ) -> None:
        reader, buffer = self._thread_state()
        try:
            while (start := next(numbers) * _TASK_BYTES) < plan.size and not self._stop.is_set():
                task = buffer[: min(_TASK_BYTES, plan.size - start)]
                self._fill(reader, plan, start, task)
                for at in range(0, len(task), BLOCK_BYTES):
                    block = task[at : at + BLOCK_BYTES]
                    digests[(start + at) // BLOCK_BYTES] = xxhash.xxh3_128_digest(block)
                _write_all(descriptor, task, start)
                self._advance(len(task))
        except BaseException:
            self._stop.set()
            raise

    def _thread_state(self) -> tuple[BlockReader, memoryview]:
        if not hasattr(self._local, "reader"):
            self._local.reader = BlockReader(self._files)
            self._local.buffer = memoryview(bytearray(_TASK_BYTES))
        return self._local.reader, self._local.buffer

    def _fill(self, reader: BlockReader, plan: PlannedFile, start: int, block: memoryview) -> None:
        """Put bytes ``[start, start + len(block))`` of the planned file into ``block``."""
        at, stop = start, start + len(block)
        if at < len(plan.header):
            piece = plan.header[at:stop]
            block[: len(piece)] = piece
            at += len(piece)
        index = max(bisect_right(plan.starts, at) - 1, 0)
        while at < stop:
            tensor, begin = plan.tensors[index], plan.starts[index]
            end = min(begin + tensor.nbytes, stop)
            if end > at:
                size = tensor.dtype.itemsize
                first, last = (at - begin) // size, (end - begin) // size
                self._read(reader, tensor, (first, last), block[at - start : end - start])
                at = end
            index += 1

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
