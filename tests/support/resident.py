"""Which part of a file is in memory, as mincore(2) says, and files that are in no memory."""

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np


def measure_resident(path: Path) -> float:
    """Pages in memory, of all pages of the file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        content = np.frombuffer(mapped, np.uint8)
        states = (ctypes.c_ubyte * -(-len(content) // mmap.PAGESIZE))()
        size = ctypes.c_size_t(len(content))
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(content.ctypes.data), size, states)
        del content
        assert not failed
    return sum(state & 1 for state in states) / len(states)


def drop(path: Path) -> bool:
    """Have no page of the file in memory; whether that can be had, as it cannot on tmpfs."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return measure_resident(path) < 0.01
