"""Memos of a pickle machine that are not filled one by one."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any


class Layer(dict[int, Any]):
    """A memo on top of the first entries of another one."""

    def __init__(self, below: Mapping[int, Any], first: int) -> None:
        super().__init__()
        self._below, self._first = below, first

    def __len__(self) -> int:
        return self._first + super().__len__()

    def __missing__(self, at: int) -> Any:
        if at >= self._first:
            raise KeyError(at)
        return self._below[at]


class SkippingMemo(dict[int, Any]):
    """A memo in which much was passed over: that is made when it is asked for."""

    def __init__(self, make: Callable[[str, int, int, int], dict[int, Any]]) -> None:
        super().__init__()
        self._make = make
        self._skipped = 0
        #: Of each: its first in the memo, start, stop, and which of the names is its class's.
        self._places = array("I")
        self._names: dict[str, int] = {}

    def __len__(self) -> int:
        return super().__len__() + self._skipped

    def skip(self, puts: int, qualname: str, start: int, stop: int) -> None:
        """Leave out so many: those of the object of ``qualname`` whose opcodes lie there."""
        number = self._names.setdefault(qualname, len(self._names))
        self._places.extend((dict.__len__(self) + self._skipped, start, stop, number))
        self._skipped += puts

    def __missing__(self, at: int) -> Any:
        count = len(self._places) // 4
        place = 4 * bisect_right(range(count), at, key=lambda number: self._places[4 * number])
        if not place:
            raise KeyError(at)
        first, start, stop, number = self._places[place - 4 : place]
        found = self._make(list(self._names)[number], first, start, stop)
        if at not in found:
            raise KeyError(at)
        self._skipped -= len(found)
        self.update(found)
        return found[at]
