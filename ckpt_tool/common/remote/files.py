"""Remote files, each known by the local path that stands for it, and by a number.

A descriptor of the system is 0 or more; the number of a remote file is less.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from ckpt_tool.common.errors import FormatError, StoreError
from ckpt_tool.common.remote.address import Address, find_address
from ckpt_tool.common.remote.failures import explain, make_change_error
from ckpt_tool.common.remote.objects import RemoteObject
from ckpt_tool.common.remote.patience import ask_again
from ckpt_tool.common.remote.pool import Pool
from ckpt_tool.common.remote.ranges import Ranges

T = TypeVar("T")

#: A tag of this kind never matches where one is asked for.
_WEAK = "W/"

_AT_ONCE = 8 << 20  # bytes

_POOL = Pool()


@dataclass
class RemoteFile:
    """A file that lies elsewhere: ``path`` stands for it here."""

    path: str
    found: RemoteObject

    def __post_init__(self) -> None:
        self.ranges = Ranges(self.found.size, self._fetch, _POOL)

    @property
    def _address(self) -> Address:
        address = find_address(self.path)
        assert address is not None
        return address

    def _fetch(self, start: int, stop: int) -> memoryview:
        """Bytes ``[start, stop)`` of the very version that was listed."""
        try:
            return ask_again(lambda: self._ask(start, stop), _is_of_connection)
        except (StoreError, FormatError):  # is explained
            raise
        except Exception as error:
            raise explain(error, self._address) from error

    def _ask(self, start: int, stop: int) -> memoryview:
        """What the store gives; FormatError where it is of another version."""
        import obstore

        options: Any = {"range": (start, stop)}
        if self.found.etag and not self.found.etag.startswith(_WEAK):
            options["if_match"] = self.found.etag
        answer = obstore.get(self.found.store, self.found.key, options=options)
        if not self.found.is_of(answer.meta):
            raise make_change_error(str(self._address))
        content = memoryview(answer.bytes())
        if len(content) != stop - start:
            wanted = f"{stop - start:,} from byte {start:,} on"
            raise _CutShortError(
                f"{self._address}: gives {len(content):,} bytes for {wanted}",
                hint="The store or a proxy on the way cuts answers short; try again.",
            )
        return content


class _CutShortError(StoreError):
    """An answer that ends before it should."""


def _is_of_connection(error: Exception) -> bool:
    """Whether an answer broke off, so that another one may do.

    obstore asks again from where it ended, if there is an ETag that says that it is the same. Where
    there was no connection, or the answer is a refusal, it has asked again itself.
    """
    if isinstance(error, _CutShortError):
        return True
    text = str(error)
    is_asked_again = "max_retries" in text or "status code" in text
    return type(error).__name__ == "GenericError" and not is_asked_again


_by_number: dict[int, RemoteFile] = {}
_numbers: dict[str, int] = {}
_next = count(-1, -1)


def add_file(path: str, found: RemoteObject) -> None:
    """From now on ``path`` stands for the object; for its newest version, where it did before."""
    number = next(_next)
    _by_number[number] = RemoteFile(path, found)
    _numbers[path] = number


def drop_files(folder: str) -> None:
    """What is at and below ``folder`` stands for nothing any more."""
    for path in [path for path in _numbers if f"{path}/".startswith(f"{folder}/")]:
        del _by_number[_numbers.pop(path)]


def find_number(path: str) -> int:
    """The number of the remote file for which ``path`` stands; 0 where it stands for none."""
    if not _numbers:
        return 0
    return _numbers.get(path) or _numbers.get(os.path.normpath(path), 0)


def are_there() -> bool:
    """Whether there is any remote file."""
    return bool(_numbers)


def get_file(number: int) -> RemoteFile:
    """The file of a number; FileNotFoundError where its path stands for nothing any more."""
    found = _by_number.get(number)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "was listed anew since it was opened")
    return found


def ask(work: Callable[[], T]) -> T:
    """What ``work``, which asks a store, returns or raises; Ctrl-C need not wait for it."""
    return _POOL.call(work)


def give_up() -> None:
    """Nothing is wanted any more: who waits for bytes is told so."""
    _POOL.stop()


class RemoteReader(io.RawIOBase):
    """A remote file as Python's files are; ``io.BufferedReader`` goes around it."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """From any place on."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; where that is."""
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.found.size}
        self._at = max(0, begin[whence] + offset)
        return self._at

    def tell(self) -> int:
        """The place."""
        return self._at

    def readall(self) -> bytes:
        """All that is left, in a few requests at a time."""
        content = memoryview(bytearray(max(0, self._file.found.size - self._at)))
        for done in range(0, len(content), _AT_ONCE):
            part = content[done : done + _AT_ONCE]
            self._file.ranges.order(self._at, self._at + len(part))
            self.readinto(part)
        return bytes(content)

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``; how many bytes."""
        got = self._file.ranges.read(self._at, memoryview(buffer).cast("B"))
        self._at += got
        return got
