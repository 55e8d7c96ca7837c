"""A file that several threads write at once, past the page cache where the file system allows it.

Direct writes (``O_DIRECT``) go to the disk while the threads prepare what comes next. Through the
page cache every byte is copied once more, into memory that first has to be found, and then waited
for all the same: 1.7 times the time, where the result has to be on disk at the end. What they ask
for, by ``open(2)``: memory, offset and length in multiples of a block.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ckpt_tool.writers.opening import name_file, open_file

#: Memory, offset and length of a direct write are multiples of this: no disk has larger blocks.
_ALIGNMENT = 4 << 10

#: How file systems refuse direct writes.
_NO_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)

#: Bytes per write through the page cache. It takes pages as large as a write and its alignment
#: allow, and large ones are rarely at hand (on a virtual machine they come from memory that was
#: given back to the host): whole, aligned blocks took three times as long as blocks whose first
#: page is written on its own, which leaves the rest unaligned.
_CACHED_BYTES = 1 << 20


def allocate_aligned(size: int) -> memoryview:
    """Memory that direct writes accept; ``size`` in bytes, rounded up to whole pages."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class Output(Protocol):
    """A file that is being written, on a disk or elsewhere."""

    def write(self, buffer: memoryview, length: int, offset: int) -> None:
        """Write the first ``length`` bytes of ``buffer`` at ``offset``; several threads do."""

    def finish(self) -> None:
        """All threads are done."""

    def settle(self) -> None:
        """Wait until its bytes are where they go."""

    def stop(self) -> None:
        """Nobody wants it any more: whoever waits in :meth:`write` need not."""

    def close(self) -> None:
        """Let go of it, when no thread writes any more."""


class OutputFile:
    """A file of ``size`` bytes, its space reserved; threads write disjoint parts of it.

    ``direct``: past the page cache, where the file system can do that; ``sync`` waits until a
    descriptor's bytes are on disk. OSError where it cannot be made or the disk is full.
    """

    def __init__(
        self, path: Path, size: int, *, direct: bool, sync: Callable[[int], None] = os.fsync
    ) -> None:
        self._path = path
        self._sync = sync
        self._size = size
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._direct = direct
        try:
            self.descriptor = open_file(path, flags | (os.O_DIRECT if direct else 0))
        except OSError as error:
            if not direct or error.errno not in _NO_DIRECT:
                raise
            self._direct = False
            self.descriptor = open_file(path, flags)
        try:
            with name_file(path):
                _reserve(self.descriptor, size)
        except BaseException:
            os.close(self.descriptor)
            raise

    def write(self, buffer: memoryview, length: int, offset: int) -> None:
        """Write the first ``length`` bytes of an aligned buffer at ``offset``, a multiple of 4 KiB.

        A direct write takes whole blocks, so that what is behind them in the buffer may follow
        them into the file, until :meth:`finish`.
        """
        with name_file(self._path):
            done = self._write_blocks(buffer, length, offset) if self._direct else 0
            limit = _ALIGNMENT
            while done < length:
                part = buffer[done : min(done + limit, length)]
                done += os.pwrite(self.descriptor, part, offset + done)
                limit = _CACHED_BYTES

    def finish(self) -> None:
        """Cut off what was written behind the end, when all threads are done."""
        os.ftruncate(self.descriptor, self._size)

    def settle(self) -> None:
        """Wait until it is on disk."""
        self._sync(self.descriptor)

    def stop(self) -> None:
        """Nobody wants it any more; nothing waits here."""

    def close(self) -> None:
        """Close it, when no thread writes any more."""
        os.close(self.descriptor)

    def _write_blocks(self, buffer: memoryview, length: int, offset: int) -> int:
        """Write directly, as far as that goes; returns how many bytes are written.

        Fewer than ``length`` where the file system refuses, or takes less than a block: a direct
        write cannot begin within one. The page cache is used from then on.
        """
        blocks = (length + _ALIGNMENT - 1) // _ALIGNMENT
        done = 0
        while done < length:
            part = buffer[done : blocks * _ALIGNMENT]
            try:
                whole = os.pwrite(self.descriptor, part, offset + done) // _ALIGNMENT
            except OSError as error:
                if error.errno not in _NO_DIRECT:
                    raise
                whole = 0
            if not whole:
                self._use_cache()
                break
            done += whole * _ALIGNMENT
        return done

    def _use_cache(self) -> None:
        """Some file systems accept the flag and then no write: go on without it."""
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        self._direct = False


def _reserve(descriptor: int, size: int) -> None:
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
