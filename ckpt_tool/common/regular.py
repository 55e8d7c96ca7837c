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


def announce(descriptor: int, start: int, size: int) -> None:
    """Have the system fetch bytes that will be read soon, while others are read."""
    if hasattr(os, "posix_fadvise"):  # macOS has none
        os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)


def open_regular(path: Path) -> BinaryIO:
    """The file opened for reading; OSError where it is not there, or no regular file."""
    return os.fdopen(open_descriptor(str(path)), "rb")


def read_regular(path: Path, most: int = -1) -> bytes:
    """Its bytes, of a long one the first ``most``; OSError as when it is opened."""
    with open_regular(path) as file:
        return file.read(most)


def read_end(path: Path, most: int) -> bytes:
    """Its last bytes, ``most`` at most; OSError as when it is opened."""
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most)


#: What can be in place of a file, as people call it.
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def say_irregular(path: Path) -> str:
    """What ``path``, which is there, is other than a regular file; empty where it is one."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if not path.is_symlink():
            return f"not to be looked at ({error.strerror})"
        loops = error.errno == errno.ELOOP
        why = "which leads back to itself" if loops else f"not to be reached ({error.strerror})"
        why = "where nothing is" if error.errno == errno.ENOENT else why
        return f"a link to {path.readlink()}, {why}"
    if stat.S_ISREG(mode):
        return ""
    return _KINDS.get(stat.S_IFMT(mode), "nothing that has bytes")


def is_regular(path: Path) -> bool:
    """Whether there is such a file; not either where its name is none that a file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
