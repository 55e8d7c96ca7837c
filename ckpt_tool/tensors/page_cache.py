"""The page cache is left as it was found: what was in it stays, what reading has put there goes.

Whoever reads more than there is memory for takes it from what other programs have cached, unless
its own pages go first. A file of which a good part is in memory already is somebody's, and is left
alone. mincore(2) tells nothing of files that are not ours to write; those count as somebody's.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import suppress

from ckpt_tool.common.regular import measure

_PAGE = mmap.PAGESIZE
_SAMPLES = 64
_SAMPLE_PAGES = 16

#: Of the samples: what metadata takes that was read before is less.
_SOMEBODYS_SHARE = 1 / 8

#: Pages come in larger units, of which one that two reads share goes with the second.
_MARGIN = 128 << 10

#: What is read again and again, as the pages of factors and scales, is read in smaller pieces.
_LEAST_READ = 128 << 10


def is_somebodys(descriptor: int) -> bool:
    """Whether enough of a file is in memory, or nobody can tell, as of empty and remote ones."""
    size = measure(descriptor)
    if not size or descriptor < 0:
        return True
    try:
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as mapped:
            return _measure_share(mapped, size) >= _SOMEBODYS_SHARE
    except (OSError, ValueError, BufferError, AttributeError):
        return True


def _measure_share(mapped: mmap.mmap, size: int) -> float:
    """Which part of a mapped file is in memory, by samples; the file is not touched."""
    import numpy as np

    call = ctypes.CDLL(None, use_errno=True).mincore
    start, pages = np.frombuffer(mapped, np.uint8).ctypes.data, -(-size // _PAGE)
    length = min(_SAMPLE_PAGES, pages)
    states = (ctypes.c_ubyte * length)()
    found = looked = 0
    for first in sorted({(pages - length) * n // _SAMPLES for n in range(_SAMPLES)}):
        at = ctypes.c_void_p(start + first * _PAGE)
        if call(at, ctypes.c_size_t(length * _PAGE), states):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        found += sum(state & 1 for state in states)
        looked += length
    return found / looked


def forget_read(descriptor: int, offset: int, size: int) -> None:
    """Let the pages go that were just read; small reads are about what is read again."""
    if size >= _LEAST_READ:
        start = max(0, offset - _MARGIN) // _PAGE * _PAGE
        stop = (offset + size) // _PAGE * _PAGE
        with suppress(OSError):
            os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)


def forget_all(descriptor: int) -> None:
    """Let go what is left of a file."""
    with suppress(OSError):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
