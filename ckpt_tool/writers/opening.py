"""Opening what is written: no link at the end of a path is followed, and umask says who may read.

Folders in which others may write, too (``/tmp``) are no reason to write into somebody's file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ckpt_tool.common.errors import OutputError

_HINT = "Remove it, or choose another output folder."
#: How file systems say that folders are not synced there.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def open_file(path: Path, flags: int) -> int:
    """A descriptor of a plain file; new ones get the mode that umask leaves.

    OutputError where the path is a link, or is no file; OSError where it cannot be opened.
    """
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _is_link(path) from error
        if error.errno == errno.EISDIR:
            raise _is_no_file(path) from error
        if error.errno in (errno.EACCES, errno.EPERM) and os.path.lexists(path):
            raise OutputError(
                f"{path}: is there, and may not be written ({error.strerror})",
                hint="It may be of another user's run. " + _HINT,
            ) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _is_no_file(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def require_folder(path: Path) -> bool:
    """Whether a folder is there; OutputError where something else is, be it a link to one."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(mode):
        raise _is_link(path)
    if not stat.S_ISDIR(mode):
        raise OutputError(f"{path}: is not a folder, and is to be written into", hint=_HINT)
    return True


def sync_folder(path: str | Path, sync: Callable[[int], None]) -> None:
    """Sync the entries of a folder, where the file system can: not all have that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def open_small(path: Path) -> Iterator[BinaryIO]:
    """A file to be written anew; raises what :func:`open_file` does, and OSError that names it."""
    descriptor = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with name_file(path), open(descriptor, "wb") as file:
        yield file


@contextmanager
def name_file(path: Path) -> Iterator[None]:
    """Give an OSError of a descriptor the name of its file, so that it is said."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def _is_no_file(path: Path) -> OutputError:
    return OutputError(f"{path}: is not a file, and is to be written", hint=_HINT)


def _is_link(path: Path) -> OutputError:
    return OutputError(f"{path}: is a symbolic link, and nothing is written through it", hint=_HINT)
