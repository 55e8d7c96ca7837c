"""The directory of a zip archive whose records are stored whole (PKWARE APPNOTE 6.3, zip64).

Only what ``torch.save`` writes is accepted: one disk, no compression, no encryption, records that
do not overlap. Every range handed out lies inside the file. The directory has the CRC-32 of every
record; 0 where it was written without (``torch.serialization.set_crc32_options(False)``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from ckpt_tool.common.crc import crc32
from ckpt_tool.common.errors import FormatError
from ckpt_tool.tensors.checksums import COPY_AGAIN, say_damage

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MASK32 = 0xFFFFFFFF
_NOTHING = [0, 0, 0]
_MAX_COMMENT = 1 << 16

Read = Callable[[int, int], bytes]
#: Header, raw name, size and CRC-32 of a row of the directory.
_Entry = tuple[int, bytes, int, int]


class Stored(NamedTuple):
    """Where a record's content lies in its archive; ``crc``: its CRC-32, 0 where nothing says it.

    No content but an empty one is taken to have a CRC-32 of 0: one in four billion has.
    """

    start: int
    size: int
    crc: int


class _Record(NamedTuple):
    """A row of the directory; ``header``: position of the local header.

    ``end``: nothing of the record lies behind it.
    """

    raw: bytes
    header: int
    size: int
    crc: int
    end: int


class Directory:
    """Records by name, made by :func:`read_directory`; ``start``: where it begins."""

    def __init__(self, records: dict[str, _Record], read: Read, path: str, start: int) -> None:
        self.start = start
        self._records = records
        self._read = read
        self._path = path

    @property
    def names(self) -> list[str]:
        """Every record's name, in directory order."""
        return list(self._records)

    @property
    def headers(self) -> list[tuple[int, int]]:
        """Where each record's local header lies, and its size in bytes with the name."""
        return [(row.header, _LOCAL.size + len(row.raw)) for row in self._records.values()]

    def find_header(self, name: str) -> int:
        """The position of a record's local header; KeyError if it is not there."""
        return self._records[name].header

    def locate(self, name: str) -> Stored:
        """Where a record's content lies; FormatError if it is not there whole."""
        record = self._records.get(name)
        if record is None:
            raise FormatError(f"no record {name}", path=self._path)
        raw, header, size, crc, end = record
        local = self._read(header, _LOCAL.size + len(raw))
        # The local header has name and extra lengths of its own: torch pads the extra field there
        # to align the content, and the directory does not say so.
        mark, _, flags, method, _, _, *said, width, extra = _LOCAL.unpack_from(local)
        start = header + _LOCAL.size + width + extra
        if mark != b"PK\x03\x04" or start + size > end:
            raise FormatError(f"record {name} does not fit at byte {header}", path=self._path)
        if local[_LOCAL.size :] != raw or width != len(raw):
            found = local[_LOCAL.size :].decode("utf-8", "replace")
            self._refuse(name, f"is called {found!r} at byte {header}")
        if flags & 1 or method or not _agree(said, [crc, size, size]):
            self._refuse(name, f"has a header at byte {header} that contradicts the directory")
        return Stored(start, size, crc)

    def _refuse(self, name: str, fault: str) -> NoReturn:
        raise FormatError(f"record {name} {fault}", path=self._path, hint=COPY_AGAIN)

    def read(self, name: str, limit: int) -> bytes:
        """A record's content, of at most ``limit`` bytes, proven to have its CRC-32."""
        start, size, crc = self.locate(name)
        if size > limit:
            raise FormatError(f"{name} has {size} bytes, expected at most {limit}", path=self._path)
        content = self._read(start, size)
        found = crc32(content)
        if crc and found != crc:
            raise FormatError(say_damage(name, crc, found), path=self._path)
        return content


def _agree(said: list[int], wanted: list[int]) -> bool:
    """Whether CRC-32, packed and plain size are those of the directory, where they are said.

    They may be 0: torch has them behind the content, or in the extra field.
    """
    return said in (wanted, _NOTHING) or all(
        is_ in (0, _MASK32, true) for is_, true in zip(said, wanted, strict=True)
    )


def read_directory(read: Read, size: int, path: str) -> Directory:
    """Parse the directory of an archive of ``size`` bytes; ``read(offset, size)`` gives bytes."""
    start, length, count = _find_directory(read, size, path)
    raw = read(start, length)
    entries: list[_Entry] = []
    pos = 0
    for _ in range(count):
        if pos + _ENTRY.size > len(raw):
            raise FormatError("the zip directory is cut short", path=path)
        fields = _ENTRY.unpack_from(raw, pos)
        _check_entry(fields, path)
        name_at = pos + _ENTRY.size
        extra_at = name_at + fields[10]
        pos = extra_at + fields[11] + fields[12]
        content, header = fields[9], fields[16]
        if content != fields[8] or _MASK32 in (content, header):
            extra = raw[extra_at : extra_at + fields[11]]
            content, header = _wide(fields, extra, path)
        entries.append((header, raw[name_at:extra_at], content, fields[7]))
    if pos != len(raw):
        raise FormatError(f"the zip directory has {len(raw)} bytes, expected {pos}", path=path)
    return Directory(_without_overlaps(entries, start, path), read, path, start)


def _find_directory(read: Read, size: int, path: str) -> tuple[int, int, int]:
    """Position, length and number of entries, from the end record or its zip64 form."""
    tail_size = min(size, _END.size)  # torch writes no comment behind it
    tail = read(size - tail_size, tail_size)
    if not tail.startswith(b"PK\x05\x06"):
        tail_size = min(size, _END.size + _MAX_COMMENT)
        tail = read(size - tail_size, tail_size)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise FormatError(
            "no zip directory at its end: truncated, or not a torch.save archive",
            path=path,
            hint="Compare its size with the original and copy it again.",
        )
    end = size - tail_size + at
    fields = _END.unpack_from(tail, at)
    count, length, start = fields[4], fields[5], fields[6]
    locator = end - _END64_LOCATOR.size
    if locator >= 0 and (count == 0xFFFF or _MASK32 in (length, start)):
        mark, _, end64, _ = _END64_LOCATOR.unpack(read(locator, _END64_LOCATOR.size))
        if mark != b"PK\x06\x07" or end64 + _END64.size > size:
            raise FormatError("the zip64 end record is missing", path=path)
        wide = _END64.unpack(read(end64, _END64.size))
        count, length, start = wide[7], wide[8], wide[9]
    if start + length > end or count * _ENTRY.size > length:
        raise FormatError("the zip directory lies outside the file", path=path)
    return start, length, count


def _check_entry(fields: tuple[Any, ...], path: str) -> None:
    signature, flags, method = fields[0], fields[3], fields[4]
    if signature != b"PK\x01\x02":
        raise FormatError("a damaged zip directory", path=path)
    if method or flags & 1:
        raise FormatError(
            "a compressed or encrypted record; torch.save stores records as they are",
            path=path,
            hint="This is not what torch wrote; re-save it with torch.save.",
        )


def _wide(fields: tuple[Any, ...], extra: bytes, path: str) -> tuple[int, int]:
    """Content size and header position; values of 0xffffffff stand in the zip64 extra field."""
    packed, content, header = fields[8], fields[9], fields[16]
    narrow = [value == _MASK32 for value in (content, packed, header)]
    if any(narrow):
        values = list(_zip64_values(extra))
        if len(values) < sum(narrow):
            raise FormatError("a record without its zip64 sizes", path=path)
        content = values.pop(0) if narrow[0] else content
        packed = values.pop(0) if narrow[1] else packed
        header = values.pop(0) if narrow[2] else header
    if packed != content:
        raise FormatError(f"a record of {content} bytes stored as {packed}", path=path)
    return content, header


def _zip64_values(extra: bytes) -> tuple[int, ...]:
    pos = 0
    while pos + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, pos)
        body = extra[pos + 4 : pos + 4 + length]
        if kind == 1:
            return struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8])
        pos += 4 + length
    return ()


def _without_overlaps(entries: list[_Entry], limit: int, path: str) -> dict[str, _Record]:
    """Records whose ranges are disjoint and before the directory; FormatError otherwise."""
    ends: dict[int, int] = {}
    for header, raw, size, _ in sorted(entries, reverse=True):
        if header + _LOCAL.size + len(raw) + size > limit:
            name = raw.decode("utf-8", "replace")
            raise FormatError(f"record {name} overlaps another or the end of the file", path=path)
        ends[header] = limit
        limit = header
    records: dict[str, _Record] = {}
    for header, raw, size, crc in entries:
        name = raw.decode("utf-8", "replace")
        if name in records:
            raise FormatError(f"two records named {name}", path=path)
        records[name] = _Record(raw, header, size, crc, ends[header])
    return records
