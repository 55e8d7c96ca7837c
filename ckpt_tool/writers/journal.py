"""What a run has finished, on disk, and the lock that keeps other runs away from its folder.

A text file of JSON lines: first ``{"plan": <fingerprint>}``, then one ``{"name", "size", "digest",
"cast_errors", "spoilt"}`` per finished file, and before an output is replaced ``{"old", "inode",
"entries"}`` (see :class:`Replacing`). It lies beside the folder that is prepared, so that it is
there until that folder has become the output. Whoever writes holds a lock on it from before he
looks at the folder until nothing is left to be done.

What is read from it is believed only as far as it can be checked: somebody else may have put it
there, and a power cut may have left anything in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ckpt_tool.common.errors import OutputError
from ckpt_tool.writers.opening import open_file
from ckpt_tool.writers.stream import WrittenFile

#: How file systems say that they have no locks.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

#: A journal of a million files is smaller.
_MAX_BYTES = 256 << 20
#: The largest offset that a system call takes.
_LARGEST_FILE = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Replacing:
    """A run was about to replace an output, or had just done so.

    ``old``: the name of the folder in which what was there goes. ``inode``: of the folder that
    becomes the output. ``entries``: what is moved into an output that is a mount point.
    """

    old: str
    inode: int
    entries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Left:
    """What an earlier run left. ``plan``: its fingerprint; empty where there is none.

    ``is_damaged``: something is there, and it is no journal.
    """

    plan: str = ""
    files: list[WrittenFile] | None = None
    replacing: Replacing | None = None
    is_damaged: bool = False


class Journal:
    """The journal of one output. One that is not open (another process has it) takes no notes."""

    def __init__(self, path: Path, sync: Callable[[int], None]) -> None:
        self.path = path
        self._sync = sync
        self._descriptor: int | None = None
        self._end = 0

    def open(self, out: Path) -> None:
        """Take the lock; OutputError where another run that writes ``out`` has it.

        OutputError also where the path is a link, or no file: nothing is written through it.
        """
        while self._descriptor is None:
            descriptor = open_file(self.path, os.O_RDWR | os.O_CREAT)
            try:
                _lock(descriptor, out)
                if self._is_still(descriptor):
                    self._descriptor = descriptor
            finally:
                if self._descriptor is None:  # or the run that had it ended, and removed the file
                    os.close(descriptor)

    @property
    def is_open(self) -> bool:
        """Whether this process keeps it."""
        return self._descriptor is not None

    def read(self) -> Left:
        """What an earlier run has noted."""
        if self._descriptor is None:
            return Left()
        return _parse(_read_all(self._descriptor))

    def start(self, plan: str, kept: Sequence[WrittenFile] = ()) -> None:
        """Begin with the files that are ``kept``. A full disk, or a kill, loses none of them."""
        if self._descriptor is None:
            return
        content = b"".join(map(_encode, [{"plan": plan}, *map(asdict, kept)]))
        if _read_all(self._descriptor)[: len(content)] != content:
            os.ftruncate(self._descriptor, 0)
            _write_at(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))
        self._end = len(content)
        self._sync(self._descriptor)

    def note(self, written: WrittenFile) -> None:
        """Add a file that is finished."""
        self._add(asdict(written))

    def note_replacing(self, replacing: Replacing) -> None:
        """Say what is going to be replaced, and how."""
        self._add(asdict(replacing))

    def close(self, *, remove: bool = False) -> None:
        """Let go of the lock; with ``remove``, or where it says nothing, it is there no more."""
        if self._descriptor is None:
            return
        try:
            if remove or not os.fstat(self._descriptor).st_size:
                self.path.unlink(missing_ok=True)
        finally:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _add(self, row: dict[str, object]) -> None:
        if self._descriptor is None:
            return
        content = _encode(row)
        _write_at(self._descriptor, content, self._end)
        self._end += len(content)
        self._sync(self._descriptor)

    def _is_still(self, descriptor: int) -> bool:
        """Whether the path still names this file."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.lstat())
        except FileNotFoundError:
            return False


def read_finished(path: Path) -> dict[str, int]:
    """Sizes of the files that a journal says are finished, by name; nothing where there is none."""
    try:
        descriptor = open_file(path, os.O_RDONLY)
    except (OSError, OutputError):
        return {}
    try:
        return {written.name: written.size for written in _parse(_read_all(descriptor)).files or ()}
    finally:
        os.close(descriptor)


def is_plain_name(name: object) -> bool:
    """Whether it names an entry of a folder, and nothing elsewhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name


def is_file_size(size: object) -> bool:
    """Whether a file can have so many bytes."""
    return type(size) is int and 0 <= size <= _LARGEST_FILE


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"{out}: another ckpt is writing it just now",
            hint="Wait for it to end, or choose another output folder.",
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _read_all(descriptor: int) -> bytes:
    parts, at = [], 0
    while at < _MAX_BYTES and (part := os.pread(descriptor, 1 << 20, at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _write_at(descriptor: int, content: bytes, at: int) -> None:
    os.lseek(descriptor, at, os.SEEK_SET)
    while content:
        content = content[os.write(descriptor, content) :]


def _encode(row: dict[str, object]) -> bytes:
    return (json.dumps(row) + "\n").encode()


def _parse(content: bytes) -> Left:
    """What a journal says: rows that make no sense are left out, as the last one of a killed run.

    Without a first row of ours nothing else of it counts.
    """
    rows = []
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    plan = rows[0].get("plan") if rows and isinstance(rows[0], dict) else None
    if not isinstance(plan, str) or not plan:
        return Left(is_damaged=bool(content))
    files, replacing = {}, None
    for row in rows[1:]:
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            if "old" in row:
                replacing = _read_replacing(row)
            else:
                written = _read_file(row)
                files[written.name] = written
    return Left(plan, list(files.values()), replacing)


def _read_file(row: dict[str, Any]) -> WrittenFile:
    name, size, digest = row["name"], row["size"], row["digest"]
    parts = PurePosixPath(name).parts
    if not parts or not all(map(is_plain_name, parts)):
        raise ValueError(name)
    if not (is_file_size(size) and isinstance(digest, str)):
        raise TypeError(name)
    errors = tuple((str(a), str(b), float(error)) for a, b, error in row["cast_errors"])
    return WrittenFile(name, size, digest, errors, tuple(map(str, row.get("spoilt", ()))))


def _read_replacing(row: dict[str, Any]) -> Replacing:
    names = [row["old"], *row["entries"]]
    if not all(map(is_plain_name, names)):
        raise ValueError(names)
    return Replacing(names[0], int(row["inode"]), tuple(names[1:]))
