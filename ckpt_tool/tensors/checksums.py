"""The checksums that a file has for what lies in it."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

#: What to do about damage, for people.
COPY_AGAIN = "Copy the file again from the cluster."

_LISTED = 3


class RecordSum(NamedTuple):
    """A run of bytes that was written with a CRC-32: in ``torch.save``'s archives, a storage.

    ``start``: its first byte in the file; ``size``: in bytes; ``crc``: the CRC-32 when it was
    written, 0 where the file does not say it; ``name``: what the file calls it.
    """

    start: int
    size: int
    crc: int
    name: str


class FileSums:
    """The records of a file, which are disjoint, by ascending position; empty ones left out.

    Packed: a checkpoint may have hundreds of thousands.
    """

    def __init__(self, records: Iterable[RecordSum]) -> None:
        rows = [row for row, _ in groupby(sorted(row for row in records if row.size))]
        self._starts = array("q", (row.start for row in rows))
        self._sizes = array("q", (row.size for row in rows))
        self._crcs = array("I", (row.crc for row in rows))
        # Archives of one run call their records alike behind the first folder.
        self._folder = _find_folder([row.name for row in rows])
        self._names = [sys.intern(row.name[len(self._folder) :]) for row in rows]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> RecordSum:
        name = self._folder + self._names[index]
        return RecordSum(self._starts[index], self._sizes[index], self._crcs[index], name)

    def find(self, at: int) -> int:
        """The number of the record in which byte ``at`` of the file lies; -1: in none."""
        index = bisect_right(self._starts, at) - 1
        if index < 0 or at >= self._starts[index] + self._sizes[index]:
            return -1
        return index


def _find_folder(names: Sequence[str]) -> str:
    """The folder in which all of them are, with the slash behind it; empty where there is none."""
    first = names[0] if names else ""
    folder = first[: first.find("/") + 1]
    return folder if all(name.startswith(folder) for name in names) else ""


def say_damage(name: str, expected: int, found: int, names: Sequence[str] = ()) -> str:
    """What is wrong with a record whose content is not what was written, and what to do.

    ``names``: the tensors that lie in it.
    """
    said = f"record {name} is damaged: its CRC-32 is {found:08x}, and was {expected:08x}. "
    if names:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        said += f"In it: {', '.join(names[:_LISTED])}{more}. "
    return said + COPY_AGAIN
