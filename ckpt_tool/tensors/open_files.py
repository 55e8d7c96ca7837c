"""Descriptors of many files that several threads read, never more than the system allows."""

from __future__ import annotations

import errno
import resource
import threading

from ckpt_tool.common.regular import ZEROS, close_descriptor, open_descriptor
from ckpt_tool.tensors.page_cache import forget_all, forget_read, is_somebodys

#: Files that are opened before anybody asks for more than the soft limit.
_FEW = 200

#: Of a high limit: descriptors that are left for what else is open.
_LEFT = 256

_NO_LIMIT = 1 << 20


class OpenFiles:
    """Read-only descriptors by path, opened on first use; the oldest are closed where room ends.

    A descriptor is its thread's until that thread asks for another path. ``passes``: what is read
    through them is read once, and leaves no pages in memory that were not there.
    """

    def __init__(self, *, passes: bool = False) -> None:
        self._passes = passes
        self._passing: set[str] = set()
        self._descriptors: dict[str, int] = {}
        self._used: dict[int, str] = {}  # by thread: the path that it has asked for last
        self._room = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all of them: no thread reads any more."""
        while self._descriptors:
            self._close(*self._descriptors.popitem())

    def let_go(self, path: str, descriptor: int, offset: int, size: int) -> None:
        """These bytes of ``path`` were read, and are not needed again."""
        if path in self._passing:
            forget_read(descriptor, offset, size)

    def _close(self, path: str, descriptor: int) -> None:
        if path in self._passing:
            forget_all(descriptor)
        close_descriptor(descriptor)

    def descriptor(self, path: str) -> int:
        """The descriptor for ``path``; OSError where it cannot be, or is no regular file."""
        self._used[threading.get_ident()] = path  # said before looking: see `_close_one`
        found = self._descriptors.get(path)
        if found is not None:
            return found
        with self._lock:
            if path not in self._descriptors:
                self._descriptors[path] = self._open(path)
            return self._descriptors[path]

    def _open(self, path: str) -> int:
        if not self._room:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            self._room = min(_FEW, soft // 2) if soft != resource.RLIM_INFINITY else _NO_LIMIT
        if len(self._descriptors) >= self._room:
            self._room = max(self._room, _allow_many())
        if len(self._descriptors) >= self._room:
            self._close_one()
        while True:
            try:
                descriptor = open_descriptor(path)
                if self._passes and path != ZEROS and not is_somebodys(descriptor):
                    self._passing.add(path)
                return descriptor
            except OSError as error:
                if error.errno != errno.EMFILE or not self._close_one():
                    raise

    def _close_one(self) -> bool:
        """Close the oldest file that no thread reads, if there is one.

        It is taken out of the table first, and only then is it looked who reads it: whoever found
        it there has said so before.
        """
        for path in list(self._descriptors):
            descriptor = self._descriptors.pop(path)
            if path not in self._used.values():
                self._close(path, descriptor)
                return True
            self._descriptors[path] = descriptor
        return False


def _allow_many() -> int:
    """Lift the soft limit on open files: one rank file each adds up on large jobs.

    How many of them may be sources.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return _NO_LIMIT if hard == resource.RLIM_INFINITY else max(hard // 2, hard - _LEFT)
