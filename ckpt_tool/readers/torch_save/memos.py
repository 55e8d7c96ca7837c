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
        self._names: list[str] = []
        self._places = array("Q")  # of each: its first in the memo, start, stop

    def __len__(self) -> int:
        return super().__len__() + self._skipped

    def skip(self, puts: int, qualname: str, start: int, stop: int) -> None:
        """Leave out so many: those of the object of ``qualname`` whose opcodes lie there."""
        self._places.extend((dict.__len__(self) + self._skipped, start, stop))
        self._names.append(qualname)
        self._skipped += puts

    def __missing__(self, at: int) -> Any:
        number = bisect_right(range(len(self._names)), at, key=self._find_first) - 1
        if number < 0:
            raise KeyError(at)
        found = self._make(self._names[number], *self._places[3 * number : 3 * number + 3])
        if at not in found:
            raise KeyError(at)
        self._skipped -= len(found)
        self.update(found)
        return found[at]

    def _find_first(self, number: int) -> int:
        return self._places[3 * number]
