"""Files of a checkpoint are regular ones: a pipe in place of one would be waited for for ever.

Some lie elsewhere, and local ones of no content stand for them (:mod:`ckpt_tool.common.remote`):
here, and nowhere else, it is asked which. A descriptor of less than 0 is of such a file.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from ckpt_tool.common.remote.files import RemoteReader, find_number, get_file
from ckpt_tool.common.remote.ranges import Span, join_near

#: The system's file of zeros, which padding is read from.
ZEROS = "/dev/zero"


#: What a remote file is read by where it is read in order.
_BUFFER = 64 << 10


def open_descriptor(path: str) -> int:
    """A descriptor that reads ``path``; OSError where it is not there, or no regular file.

    It is for :func:`pread`, :func:`pread_into`, :func:`measure` and :func:`close_descriptor`.
    """
    if number := find_number(path):
        return number
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or path == ZEROS:
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "not a regular file", path)


def close_descriptor(descriptor: int) -> None:
    """It is not read any more."""
    if descriptor >= 0:
        os.close(descriptor)


def measure(descriptor: int) -> int:
    """The bytes that the file has."""
    return os.fstat(descriptor).st_size if descriptor >= 0 else get_file(descriptor).found.size


def pread(descriptor: int, size: int, offset: int) -> bytes:
    """The ``size`` bytes from ``offset`` on; fewer where the file ends, or the system gives fewer.

    OSError where they cannot be read; StoreError where a store does not give them.
    """
    if descriptor >= 0:
        return os.pread(descriptor, size, offset)
    file = get_file(descriptor)
    content = bytearray(max(0, min(size, file.found.size - offset)))
    file.ranges.read(offset, memoryview(content))
    return bytes(content)


def pread_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill ``buffer`` from ``offset`` on; how many bytes, as :func:`pread` gives them."""
    if descriptor >= 0:
        return os.preadv(descriptor, [buffer], offset)
    return get_file(descriptor).ranges.read(offset, buffer)


def announce(spans: Iterable[Span]) -> None:
    """Have bytes fetched that will be read soon, in this order, while others are read.

    Of files that lie elsewhere what is near to each other comes in one request.
    """
    remote = []
    for span in spans:
        descriptor, start, stop = span
        if descriptor < 0:
            remote.append(span)
        elif hasattr(os, "posix_fadvise"):  # macOS has none
            with suppress(OSError, OverflowError):  # who reads there says so
                os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_WILLNEED)
    for number, start, stop in join_near(remote):
        get_file(number).ranges.expect(start, stop)


def withdraw(descriptor: int) -> None:
    """What was announced of a file and was not read yet never will be."""
    if descriptor < 0:
        with suppress(FileNotFoundError):  # listed anew
            get_file(descriptor).ranges.withdraw()


def order(path: str, start: int, stop: int) -> None:
    """Have bytes of a file fetched that lies elsewhere: they are read next, once."""
    if number := find_number(path):
        get_file(number).ranges.order(start, stop)


def announce_ends(paths: Iterable[Path]) -> None:
    """Have both ends fetched of files that lie elsewhere: one request each takes too long."""
    for path in paths:
        if number := find_number(str(path)):
            file = get_file(number)
            file.ranges.expect(0, _BUFFER)
            file.ranges.expect(max(_BUFFER, file.found.size - _BUFFER), file.found.size)


def open_regular(path: Path) -> BinaryIO:
    """The file opened for reading; OSError where it is not there, or no regular file."""
    if number := find_number(str(path)):
        return cast(BinaryIO, io.BufferedReader(RemoteReader(get_file(number)), _BUFFER))
    return os.fdopen(open_descriptor(str(path)), "rb")


def measure_file(file: BinaryIO) -> int:
    """The bytes of a file that :func:`open_regular` has opened."""
    at = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(at)
    return size


def read_regular(path: Path, most: int = -1) -> bytes:
    """Its bytes, of a long one the first ``most``; OSError as when it is opened."""
    with open_regular(path) as file:
        return file.read(most)


def read_end(path: Path, most: int) -> bytes:
    """Its last bytes, ``most`` at most; OSError as when it is opened."""
    with open_regular(path) as file:
        file.seek(max(0, measure_file(file) - most))
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
