"""Small values that the processes of a run tell each other, in the store where they met.

Not by gloo: whoever waits in it listens to nobody, one that is gone is noticed only where a
connection closes, and on its exit torch 2.6 can wait for itself for ever.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

#: The store takes no value of 8 MiB.
_PART_BYTES = 4 << 20

#: Waiting listens once in so long.
_LISTEN = timedelta(seconds=1)

_LEAVE_SECONDS = 0.02


class GoneError(Exception):
    """Process ``rank`` has left, or the store with it, and somebody waits for it."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.rank = rank


class Board:
    """Where process ``rank`` of ``size`` reads what the others have written, and writes itself.

    ``listen``: called while it waits; what it raises ends the wait.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.listen: Callable[[], None] = lambda: None
        self._store = store
        self._rank, self._size = rank, size
        self._turn = 0
        # Processes that meet again find nothing that is left of the last time.
        self.start = f"ckpt/{store.add(f'ckpt/times/{rank}', 1)}/"

    def exchange(self, value: Any) -> list[Any]:
        """Everyone's value, by rank: the first process collects and hands out.

        Raises GoneError, and what ``listen`` does.
        """
        self._turn += 1
        if self._rank:
            self._put(f"{self._turn}/{self._rank}", pickle.dumps(value))
            found: list[Any] = pickle.loads(self._take(f"{self._turn}/all", 0))
            return found
        found = [value]
        for rank in range(1, self._size):
            found.append(pickle.loads(self._take(f"{self._turn}/{rank}", rank)))
            self._drop(f"{self._turn}/{rank}")
        self._drop(f"{self._turn - 1}/all")  # whoever is at this turn has read it
        self._put(f"{self._turn}/all", pickle.dumps(found))
        return found

    def leave(self, seconds: float) -> None:
        """Whoever still waits for this process need not. ``seconds``: to wait for the others, most.

        The first leaves when all others are done, for it may have the store; and these after it,
        for torchrun stops it, which has to speak, as soon as one of them is gone.
        """
        end = time.monotonic() + seconds
        over = f"{self.start}over"
        others = [f"{self.start}left/{rank}" for rank in range(1, self._size)]
        with suppress(RuntimeError, KeyboardInterrupt):
            self._store.set(f"{self.start}left/{self._rank}", "")
            while time.monotonic() < end and not self._store.check([over]):
                if not self._rank and self._store.check(others):
                    self._store.set(over, "")
                time.sleep(_LEAVE_SECONDS)

    def _put(self, key: str, content: bytes) -> None:
        parts = range(0, len(content), _PART_BYTES)
        try:
            for number, at in enumerate(parts):
                part = content[at : at + _PART_BYTES]
                self._store.set(f"{self.start}{key}/{number}", part)
            self._store.set(f"{self.start}{key}", str(len(parts)))
        except RuntimeError as error:
            raise GoneError(0) from error

    def _take(self, key: str, rank: int) -> bytes:
        """What ``rank`` has put there, or will put."""
        key = f"{self.start}{key}"
        while not self._is_there(key, rank):
            self.listen()
        try:
            count = int(self._store.get(key))
            return b"".join(self._store.get(f"{key}/{number}") for number in range(count))
        except RuntimeError as error:
            raise GoneError(0) from error

    def _is_there(self, key: str, rank: int) -> bool:
        try:
            self._store.wait([key], _LISTEN)
        except RuntimeError:  # not yet, or the store is closed, which asking tells
            return self._look_again(key, rank)
        return True

    def _look_again(self, key: str, rank: int) -> bool:
        try:
            has_left = self._store.check([f"{self.start}left/{rank}"])
            is_there = bool(self._store.check([key]))
        except RuntimeError as error:
            raise GoneError(0) from error
        if has_left and not is_there:
            raise GoneError(rank)
        return is_there

    def _drop(self, key: str) -> None:
        with suppress(RuntimeError):
            key = f"{self.start}{key}"
            count = int(self._store.get(key)) if self._store.check([key]) else 0
            for name in (key, *(f"{key}/{number}" for number in range(count))):
                self._store.delete_key(name)
