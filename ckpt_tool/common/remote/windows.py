"""Parts of remote files that are held in memory, and who they are held for."""

from __future__ import annotations

from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Protocol

from ckpt_tool.common.errors import StoreError


class Window:
    """Bytes ``[start, stop)`` of a file, fetched or on their way; ``left``: not read yet."""

    __slots__ = ("content", "is_expected", "left", "start", "stop")

    def __init__(self, start: int, stop: int, *, is_expected: bool) -> None:
        self.start = start
        self.stop = stop
        self.is_expected = is_expected
        self.left = stop - start
        self.content: Future[memoryview] = Future()

    @property
    def size(self) -> int:
        """In bytes."""
        return self.stop - self.start

    def settle(self, content: memoryview | BaseException) -> None:
        """The bytes are there, or why they are not."""
        with suppress(InvalidStateError):  # given up meanwhile
            if isinstance(content, BaseException):
                self.content.set_exception(content)
            else:
                self.content.set_result(content)

    def give_up(self) -> None:
        """Whoever waits for the bytes waits no longer."""
        self.settle(StoreError("interrupted"))


class Holder(Protocol):
    """A file: whose windows the pool holds."""

    def fetch_expected(self, start: int, stop: int) -> Window | None:
        """A new window for bytes that were expected, if there is to be one."""

    def fill(self, window: Window) -> None:
        """Fetch its bytes."""

    def drop(self, window: Window) -> None:
        """It is not held any more."""
