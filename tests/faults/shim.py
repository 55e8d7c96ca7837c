"""Faults in system calls: an error, a short read or write, the end of the process.

Every call that Python code makes on a path or a descriptor below one folder is counted, and those
on sockets. At the one whose turn it is, something happens. Files that Python buffers are read and
written through a class that is counted, too; `fallocate`, `renameat2` and the safetensors library's
`open`, which Python does not see, are counted as one call each.
"""

import builtins
import errno
import fcntl
import io
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Calls by what their first argument is.
_BY_PATH = """open rename replace unlink remove rmdir mkdir stat lstat scandir listdir statvfs
readlink link symlink chmod utime access truncate""".split()
_BY_DESCRIPTOR = """read pread preadv write pwrite fsync fdatasync ftruncate fstat lseek close
posix_fadvise fchmod""".split()
READS = {"read", "pread", "preadv", "readinto", "recv", "recv_into"}
WRITES = {"write", "pwrite", "send"}
TAKES_SPACE = {"write", "pwrite", "fallocate", "mkdir"}
_SOCKETS = ("connect", "send", "sendall", "recv", "recv_into")

#: What a call may say that fails, in turn.
_ERRORS = {
    "open": (errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOSPC),
    "mkdir": (errno.ENOSPC, errno.EACCES, errno.EDQUOT),
    "rename": (errno.EIO, errno.EBUSY, errno.EPERM),
    "fallocate": (errno.ENOSPC, errno.EDQUOT, errno.EIO),
    "flock": (errno.EIO, errno.ENOLCK),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINVAL),
    "sockets": (errno.ECONNRESET, errno.ETIMEDOUT, errno.EPIPE),
}
_SPACE = (errno.ENOSPC, errno.EIO, errno.EDQUOT)

#: `fails`: once. `full`: no space from then on. `short`: half of it. `killed`: before the call.
#: `torn`: half of it is written, and then the process ends.
WAYS = ("fails", "full", "short", "killed", "torn")


@dataclass
class Shim:
    """Counts calls below ``folder``; at number ``at`` something happens, the ``way`` it is said.

    ``trace``: the names of all calls. ``hit``: the call to which it happened.
    """

    folder: str
    way: str = ""
    at: int = -1
    trace: list[str] = field(default_factory=list)
    hit: str = ""
    _open: set[int] = field(default_factory=set)
    _is_on: bool = True

    def install(self) -> None:
        """In this process, which is to end with it."""
        for name in _BY_PATH:
            setattr(os, name, self._wrap(name, getattr(os, name), self._is_path))
        for name in _BY_DESCRIPTOR:
            setattr(os, name, self._wrap(name, getattr(os, name), self._is_descriptor))
        fcntl.flock = self._wrap("flock", fcntl.flock, self._is_descriptor)
        for name in _SOCKETS:
            setattr(socket.socket, name, self._wrap(name, getattr(socket.socket, name), _always))
        self._wrap_files()
        self._wrap_unseen()

    def _is_path(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        if "dir_fd" in named and named["dir_fd"] in self._open:
            return True
        first = arguments[0] if arguments else "."
        if isinstance(first, int):
            return first in self._open
        return str(os.fspath(first)).startswith(self.folder)

    def _is_descriptor(self, arguments: tuple[Any, ...], _: dict[str, Any]) -> bool:
        first = arguments[0]
        return (first if isinstance(first, int) else first.fileno()) in self._open

    def _wrap(self, name: str, call: Callable[..., Any], is_ours: Callable[..., bool]) -> Any:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if not self._is_on or not is_ours(arguments, named):
                return call(*arguments, **named)
            if name == "close":
                self._open.discard(arguments[0])
            arguments = self._meet(name, call, arguments, named)
            found = call(*arguments, **named)
            if name == "open":
                self._open.add(found)
            return found

        return wrapped

    def _meet(
        self, name: str, call: Callable[..., Any], arguments: tuple[Any, ...], named: Any
    ) -> tuple[Any, ...]:
        """Count a call, and have happen what is to; the arguments that it is done with."""
        number = len(self.trace)
        self.trace.append(name)
        if self.way == "full" and number >= self.at and name in TAKES_SPACE:
            self.hit = self.hit or name
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if number != self.at:
            return arguments
        if self.way == "short" and name in (*READS, *WRITES):
            self.hit = name
            return _halve(name, arguments)
        if self.way == "torn" and name in WRITES:
            call(*_halve(name, arguments), **named)
        if self.way in ("torn", "killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.way == "fails":
            self.hit = name
            if name == "close":
                call(*arguments)  # the descriptor is gone, whatever it says
            if name in _SOCKETS:
                with suppress(OSError):  # neither side hears of the other again
                    arguments[0].shutdown(socket.SHUT_RDWR)
            raise _make_error(name, number, arguments)
        return arguments

    def _wrap_files(self) -> None:
        shim, plain = self, io.open

        class Raw(io.FileIO):
            def readinto(self, buffer: Any) -> int:
                shim._meet("readinto", len, (), {})
                return super().readinto(buffer) or 0

            def readall(self) -> bytes:
                shim._meet("read", len, (b"",), {})
                return super().readall()

            def write(self, data: Any) -> int:
                def write(_: None, part: Any) -> int:
                    return io.FileIO.write(self, part) or 0

                _, part = shim._meet("write", write, (None, data), {})
                return super().write(part) or 0

        def open_counted(
            file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, *rest: Any,
            **named: Any,
        ) -> Any:  # fmt: skip
            is_ours = file in self._open if isinstance(file, int) else self._is_path((file,), {})
            if not self._is_on or not is_ours:
                return plain(file, mode, buffering, encoding, *rest, **named)
            if not isinstance(file, int):
                self._meet("open", len, (file,), {})
            raw = Raw(file, mode.replace("b", "").replace("t", ""))
            self._open.add(raw.fileno())
            if buffering == 0:
                return raw
            buffered = io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding)

        io.open = builtins.open = open_counted

    def _wrap_unseen(self) -> None:
        import safetensors

        from ckpt_tool.writers import outfile, replacing

        swap = replacing.exchange

        def exchange(*paths: Path) -> bool:
            try:
                self._meet("renameat2", len, (), {})
            except OSError:
                return False  # as where it fails
            return swap(*paths)

        replacing.exchange = exchange
        outfile._reserve = self._wrap("fallocate", outfile._reserve, self._is_descriptor)
        safetensors.safe_open = self._wrap("safe_open", safetensors.safe_open, self._is_path)


def _always(*_: object) -> bool:
    return True


def _halve(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments for half of a read or write, one byte at least."""
    first, *rest = arguments or (None,)
    if not rest:
        return arguments
    what = rest[0]
    if name == "preadv":
        (buffer,) = what
        what = [buffer[: max(1, len(buffer) // 2)]]
    elif name in READS and isinstance(what, int):
        what = max(1, what // 2)
    elif name in WRITES:
        data = memoryview(what).cast("B")
        what = data[: max(1, len(data) // 2)] if len(data) else data
    return (first, what, *rest[1:])


def _make_error(name: str, number: int, arguments: tuple[Any, ...]) -> OSError:
    kind = "sockets" if name in _SOCKETS else name
    choices = _ERRORS.get(kind, _SPACE if name in WRITES else (errno.EIO, errno.ESTALE))
    chosen = choices[number % len(choices)]
    path = [arguments[0]] if arguments and isinstance(arguments[0], (str, Path)) else []
    return OSError(chosen, os.strerror(chosen), *map(str, path))
