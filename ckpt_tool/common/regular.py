"""Files of a checkpoint are regular ones: a pipe in place of one would be waited for for ever."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

#: The system's file of zeros, which padding is read from.
ZEROS = "/dev/zero"


def open_descriptor(path: str) -> int:
    """A descriptor that reads ``path``; OSError where it is not there, or no regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or path == ZEROS:
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "not a regular file", path)


def open_regular(path: Path) -> BinaryIO:
    """The file opened for reading; OSError where it is not there, or no regular file."""
    return os.fdopen(open_descriptor(str(path)), "rb")


def is_regular(path: Path) -> bool:
    """Whether there is such a file; not either where its name is none that a file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
