"""What is read of files with checksums, held against them on the way.

Whoever reads tensors reads pieces of records, in any order and in several threads. The CRC-32s of
pieces that meet are combined; a record of which all bytes were read is proven, or found damaged.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ckpt_tool.common.crc import combine, crc32
from ckpt_tool.tensors.checksums import FileSums, RecordSum

#: What is known of a record; the larger counts where processes know different things.
UNREAD, PART, UNSAID, SOUND, DAMAGED = range(5)

#: A record that is read in more pieces than these is not followed any further: that would take
#: longer than to read it once more.
_FEW_PIECES, _PIECE_BYTES = 64, 1 << 16

#: A record: the file that it is in, and its number there.
Place = tuple[str, int]


class Damage(NamedTuple):
    """A record whose bytes are not those that were written; ``found``: their CRC-32."""

    path: str
    record: RecordSum
    found: int


class Gap(NamedTuple):
    """Bytes of a record that are still to be read."""

    path: str
    start: int
    size: int


@dataclass
class Findings:
    """What a process knows of the records of one file, to be told to others.

    ``states``: a byte for each. ``runs``: of records that were read in part, where runs of bytes
    begin and end, and their CRC-32. ``found``: the CRC-32 of damaged records.
    """

    states: bytes
    runs: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    found: dict[int, int] = field(default_factory=dict)


class ReadSums:
    """Follows what is read of files with checksums, ``sums`` by path; serves several threads.

    Reading more than once does no harm, nor does reading in pieces that overlap.
    """

    def __init__(self, sums: Mapping[str, FileSums]) -> None:
        self._sums = sums
        self._states = {path: bytearray(len(found)) for path, found in sums.items()}
        self._runs: dict[Place, _Runs] = {}
        self._found: dict[Place, int] = {}
        self._lock = threading.Lock()

    def note(self, path: str, offset: int, data: memoryview) -> None:
        """Take notice that ``data`` was read from byte ``offset`` of ``path`` on."""
        sums = self._sums.get(path)
        index = -1 if sums is None else sums.find(offset)
        if sums is None or index < 0 or self._states[path][index] > PART:
            return
        place, record = (path, index), sums[index]
        start = offset - record.start
        stop = start + len(data)
        if not record.crc or stop > record.size or self._is_given_up(place, record):
            with self._lock:
                self._raise_state(place, PART if record.crc else UNSAID)
            return
        crc = crc32(data)
        with self._lock:
            if self.state(place) <= PART:
                self._runs.setdefault(place, _Runs()).add(start, stop, crc)
                self._judge(place, record)

    def findings(self) -> dict[str, Findings]:
        """What is known of each file of which something was read."""
        found = {
            path: Findings(bytes(states)) for path, states in self._states.items() if any(states)
        }
        for (path, index), runs in self._runs.items():
            if path in found:
                found[path].runs[index] = runs.listed()
        for (path, index), crc in self._found.items():
            found[path].found[index] = crc
        return found

    def learn(self, everyone: Iterable[Mapping[str, Findings]]) -> None:
        """Take what all processes know, by rank, this one among them.

        Each puts it together anew in this order: all are to see the same gaps, of which each reads
        its share.
        """
        self._runs.clear()
        for findings in everyone:
            self._take(findings)

    def _take(self, findings: Mapping[str, Findings]) -> None:
        for path, told in findings.items():
            for index, state in enumerate(told.states):
                self._raise_state((path, index), state)
            self._found |= {(path, index): crc for index, crc in told.found.items()}
            for index, listed in told.runs.items():
                if self.state((path, index)) <= PART:
                    self._join((path, index), listed)

    def state(self, place: Place) -> int:
        """What is known of a record."""
        return self._states[place[0]][place[1]]

    def find(self, gap: Gap) -> Place:
        """The record of which some bytes are still to be read."""
        return gap.path, self._sums[gap.path].find(gap.start)

    def places(self, *states: int) -> list[Place]:
        """The records of these states."""
        return [
            (path, index)
            for path, known in self._states.items()
            for index, state in enumerate(known)
            if state in states
        ]

    def gaps(self, places: Iterable[Place]) -> Iterator[Gap]:
        """What is to be read, with whoever notes it here, so that these records are proven."""
        for place in places:
            record = self._sums[place[0]][place[1]]
            if not record.crc:
                self._raise_state(place, UNSAID)
            elif self.state(place) <= PART:
                if place not in self._runs or self._is_given_up(place, record):
                    self._runs[place] = _Runs()
                self._runs[place].is_wanted = True
                for start, stop in self._runs[place].gaps(record.size):
                    yield Gap(place[0], record.start + start, stop - start)

    def damaged(self) -> list[Damage]:
        """The records that are not what was written, by file and position."""
        return [
            Damage(path, self._sums[path][index], crc)
            for (path, index), crc in sorted(self._found.items())
        ]

    def _raise_state(self, place: Place, state: int) -> None:
        states = self._states[place[0]]
        states[place[1]] = max(states[place[1]], state)

    def _is_given_up(self, place: Place, record: RecordSum) -> bool:
        runs = self._runs.get(place)
        if runs is None or runs.is_wanted:
            return False
        return runs.pieces > _FEW_PIECES + record.size // _PIECE_BYTES

    def _join(self, place: Place, listed: Iterable[tuple[int, int, int]]) -> None:
        runs = self._runs.setdefault(place, _Runs())
        for run in listed:
            runs.add(*run)
        self._judge(place, self._sums[place[0]][place[1]])

    def _judge(self, place: Place, record: RecordSum) -> None:
        """Compare what is whole; what came of it is all that is kept then."""
        crc = self._runs[place].whole(record.size)
        if crc is None:
            self._raise_state(place, PART)
            return
        del self._runs[place]
        if crc != record.crc:
            self._found[place] = crc
        self._raise_state(place, SOUND if crc == record.crc else DAMAGED)


class _Runs:
    """Runs of bytes of one record with their CRC-32; where one ends and one begins, they are one.

    Each is true by itself, so that it does not matter whether some overlap. ``pieces``: how many
    were added; ``is_wanted``: the rest is read only to be added, in however many.
    """

    __slots__ = ("_ends", "_starts", "is_wanted", "pieces")

    def __init__(self) -> None:
        self.pieces, self.is_wanted = 0, False
        self._ends: dict[int, tuple[int, int]] = {}  # by where it begins: where it ends, CRC-32
        self._starts: dict[int, int] = {}  # by where it ends: where it begins

    def add(self, start: int, stop: int, crc: int) -> None:
        self.pieces += 1
        if start >= stop or self._begin_of(stop, stop) <= start:
            return  # nothing, or part of a run that ends there too
        before = self._begin_of(start, start)
        if before < start:
            crc = combine(self._ends.pop(before)[1], crc, stop - start)
            del self._starts[start]
        after, more = self._ends.pop(stop, (stop, 0))
        if after > stop:
            crc = combine(crc, more, after - stop)
        if self._begin_of(after, after) > before and self._ends.get(before, (-1, 0))[0] < after:
            self._ends[before] = after, crc
            self._starts[after] = before

    def whole(self, size: int) -> int | None:
        """The CRC-32 of all ``size`` bytes, once one run has them."""
        stop, crc = self._ends.get(0, (-1, 0))
        return crc if stop == size else None

    def listed(self) -> list[tuple[int, int, int]]:
        """Where each begins and ends, and its CRC-32."""
        return [(start, stop, crc) for start, (stop, crc) in sorted(self._ends.items())]

    def gaps(self, size: int) -> list[tuple[int, int]]:
        """Where bytes are missing between runs that can be put together; others are forgotten."""
        at, found = 0, []
        for start, stop, _ in self.listed():
            if start < at:
                del self._ends[start]
                continue
            if start > at:
                found.append((at, start))
            at = stop
        self._starts = {stop: start for start, stop, _ in self.listed()}
        return [*found, (at, size)] if at < size else found

    def _begin_of(self, stop: int, otherwise: int) -> int:
        """Where the run that ends at ``stop`` begins; ``otherwise`` where none does."""
        start = self._starts.get(stop, otherwise)
        return start if self._ends.get(start, (-1, 0))[0] == stop else otherwise
