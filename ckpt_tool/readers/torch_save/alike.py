"""Archives with one tensor that are the same bytes but for its elements and for checksums.

A checkpoint has thousands of one shape. Once one of them was read and proven, all that was looked
at is compared with the others: the records in front of the elements, and the directory. Where these
are equal, so is what they say.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable

from ckpt_tool.common.regular import pread
from ckpt_tool.readers.torch_save.zip_directory import Directory, Read

#: PKWARE APPNOTE 4.3: positions in a row of the directory and in a local header, the end record.
_ROW, _ROW_CRC, _ROW_LENGTHS, _ROW_NAME = b"PK\x01\x02", 16, 28, 46
_LOCAL_CRC = 14
#: Bytes at each end: an archive of one tensor has a few hundred.
_MOST = 1 << 16
_END = struct.Struct("<4s4H2LH")
_MASK16, _MASK32 = 0xFFFF, 0xFFFFFFFF
_UNSAID = (b"\0\0\0\0", b"\xff\xff\xff\xff")


def make_form(
    read: Read, length: int, directory: Directory, looked_at: Collection[str], storage: str
) -> Form | None:
    """The form of an archive of ``length`` bytes that has the elements in ``storage``.

    ``looked_at``: the records whose content counts. None where not all that counts lies in front of
    the elements, or in a directory that ends the archive.
    """
    if length - directory.start > _MOST:
        return None
    rows = read(directory.start, length - directory.start)
    end = _END.unpack_from(rows, max(len(rows) - _END.size, 0)) if len(rows) >= _END.size else ()
    header, (start, size, _) = directory.find_header(storage), directory.locate(storage)
    if not end or end[0] != b"PK\x05\x06" or end[4] == _MASK16 or _MASK32 in end[5:7]:
        return None
    if any(directory.find_header(name) > header for name in looked_at):
        return None
    if start > _MOST:
        return None
    sums = _list_sums(rows[: end[5]], looked_at)
    head = _Masked(read(0, start), [header + _LOCAL_CRC])
    places = (header + _LOCAL_CRC, sums[storage], directory.start)
    return Form(start, size, head, _Masked(rows, sums.values()), places)


class Form:
    """What archives have in common; ``start``: where the elements begin, ``size`` in bytes."""

    def __init__(
        self, start: int, size: int, head: _Masked, rows: _Masked, places: tuple[int, int, int]
    ) -> None:
        self.start, self.size = start, size
        self._head, self._rows = head, rows
        self._said, self._own, self._at = places

    def read_sum(self, descriptor: int, position: int) -> int | None:
        """The CRC-32 of the elements of the archive that begins there; None if it is another.

        0 where the file does not say it.
        """
        head = pread(descriptor, self._head.length, position)
        rows = pread(descriptor, self._rows.length, position + self._at)
        if not (self._head.matches(head) and self._rows.matches(rows)):
            return None
        found = rows[self._own : self._own + 4]
        said = head[self._said : self._said + 4]
        return int.from_bytes(found, "little") if said in (found, *_UNSAID) else None


class _Masked:
    """Bytes of which some, four at each of ``places``, count for nothing."""

    def __init__(self, content: bytes, places: Iterable[int]) -> None:
        mask = bytearray(b"\xff" * len(content))
        for place in places:
            mask[place : place + 4] = bytes(4)
        self.length = len(content)
        self._mask = int.from_bytes(mask, "little")
        self._value = int.from_bytes(content, "little") & self._mask

    def matches(self, content: bytes) -> bool:
        """Whether the other bytes are the same."""
        if len(content) != self.length:
            return False
        return int.from_bytes(content, "little") & self._mask == self._value


def _list_sums(rows: bytes, looked_at: Collection[str]) -> dict[str, int]:
    """Where the directory has the CRC-32 of each record whose content counts for nothing."""
    found, pos = {}, 0
    while rows.startswith(_ROW, pos):
        lengths = struct.unpack_from("<3H", rows, pos + _ROW_LENGTHS)
        name = rows[pos + _ROW_NAME : pos + _ROW_NAME + lengths[0]].decode("utf-8", "replace")
        if name not in looked_at:
            found[name] = pos + _ROW_CRC
        pos += _ROW_NAME + sum(lengths)
    return found
