"""The digest of a file that is on disk, by several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import xxhash

from ckpt_tool.common.regular import close_descriptor, measure, open_descriptor, pread_into
from ckpt_tool.common.threads import Threads
from ckpt_tool.tensors.ahead import Ahead, Read
from ckpt_tool.tensors.blocks import BLOCK_BYTES


def digest_together(path: Path, jobs: int, advance: Callable[[int], None]) -> str:
    """What :func:`.digest_file` gives, of blocks that ``jobs`` threads read.

    ``advance`` is told of bytes. OSError where it cannot be read or is no regular file.
    """
    descriptor = open_descriptor(str(path))
    try:
        return _digest(path, descriptor, jobs, advance)
    finally:
        close_descriptor(descriptor)


def _digest(path: Path, descriptor: int, jobs: int, advance: Callable[[int], None]) -> str:
    size = measure(descriptor)
    digests = [b""] * -(-size // BLOCK_BYTES)
    stop = threading.Event()

    def list_reads(number: int) -> list[Read]:
        return [Read(str(path), number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES)]

    numbers = Ahead(range(len(digests)), list_reads)

    def work() -> None:
        buffer = memoryview(bytearray(min(size, BLOCK_BYTES)))
        while not stop.is_set() and (number := numbers.take(-1)) >= 0:
            length = _fill(descriptor, buffer, number * BLOCK_BYTES)
            digests[number] = xxhash.xxh3_128_digest(buffer[:length])
            advance(length)

    workers = min(jobs, len(digests))
    if workers < 2:
        work()
    else:
        with Threads(workers, "ckpt-digest") as pool:
            tasks = [pool.submit(work) for _ in range(workers)]
            try:
                for task in tasks:
                    task.result()
            finally:
                stop.set()
    return xxhash.xxh3_128(b"".join(digests)).hexdigest()


def _fill(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Bytes read into the buffer: all of it, but at the end of the file."""
    done = 0
    while done < len(buffer):
        length = pread_into(descriptor, buffer[done:], offset + done)
        if not length:
            break
        done += length
    return done
