"""What a run may not do, held against it: an audit hook, and limits on time and memory.

The hook is told by the interpreter of every import, process, connection and opened file. Once
there it stays, so that it belongs into a process that was forked for the purpose.
"""

from __future__ import annotations

import mmap
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NEVER = (
    "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pty.",
    "socket.", "ctypes.dl", "exec", "compile", "pickle.find_class", "marshal.", "os.remove",
    "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown",
    "os.truncate", "os.utime", "os.kill", "shutil.", "urllib.", "http.", "webbrowser.",
    "code.__new__", "tempfile.", "sqlite3.", "os.chdir", "mmap.",
)  # fmt: skip
#: Where the kernel says on which mount a file is that is open already.
_MOUNT_IDS = "/proc/self/fdinfo/"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _asks_for_memory(event: str, args: tuple[Any, ...]) -> bool:
    """Whether memory is mapped that is no file, or looked at how much of a file is in memory."""
    if event == "mmap.__new__":
        return args[0] == -1 or args[2] == mmap.ACCESS_READ
    if event == "ctypes.dlopen":
        return args[0] is None
    return event == "ctypes.dlsym" and args[1] == "mincore"


class Violation(Exception):  # noqa: N818 - not an error of the code that is tested
    """Something was done that may not be."""


class _Guard:
    """Whose files may be read now; none: nothing is watched. The first violation is kept."""

    def __init__(self) -> None:
        self.root = ""
        self.found = ""
        self.installed = False
        self.inside = False

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.root or self.inside:
            return
        self.inside = True
        try:
            said = self._judge(event, args)
        finally:
            self.inside = False
        if said:
            self.found = self.found or said
            raise Violation(said)

    def _judge(self, event: str, args: tuple[Any, ...]) -> str:
        if event == "open":
            return self._judge_open(*args)
        if event in ("os.listdir", "os.scandir"):
            return "" if self._is_inside(args[0]) else f"{event} {args[0]!r}"
        if event == "import":
            return f"import {args[0]}"
        if _asks_for_memory(event, args):
            return ""
        if event.startswith(_NEVER):
            return f"{event} {args!r:.200}"
        return ""

    def _judge_open(self, path: Any, mode: Any, flags: int) -> str:
        if isinstance(path, int):
            return ""
        if flags & _WRITING:
            return f"open to write {path!r:.200}"
        return "" if self._is_inside(path) else f"open {path!r:.200}"

    def _is_inside(self, path: Any) -> bool:
        if isinstance(path, int):
            return True
        named = os.fsdecode(path)
        real = os.path.realpath(named)
        return f"{real}/".startswith(f"{self.root}/") or named.startswith(_MOUNT_IDS)


_GUARD = _Guard()


def install() -> None:
    """Have the interpreter tell us, from now on, in this process."""
    if not _GUARD.installed:
        sys.addaudithook(_GUARD.hook)
        _GUARD.installed = True


@contextmanager
def guarded(root: Path) -> Iterator[None]:
    """Nothing outside of ``root`` is read inside the block, and nothing is done but reading.

    Raises Violation in the end too, where the block has caught it. Watches only where
    :func:`install` was called.
    """
    _GUARD.root, _GUARD.found = os.path.realpath(root), ""
    try:
        yield
    finally:
        _GUARD.root = ""
    if _GUARD.found:
        raise Violation(_GUARD.found)


def limit_memory(room: int) -> None:
    """This process may take ``room`` bytes of addresses more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def start_clock(seconds: float) -> None:
    """The process is killed when it has used so many seconds of processors; 0: no longer.

    No handler: the kernel does it, also where Python is busy in a single operation.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)


def limit_processor(seconds: float) -> None:
    """The process is killed when it has used so many seconds of processors in all."""
    limit = int(seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
