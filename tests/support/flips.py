"""Flipped bits in archives of torch.save: where none can matter, and what became of each."""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_tool.common.errors import FormatError
from ckpt_tool.common.parallel import form_team_alone
from ckpt_tool.operations.inspect import inspect_checkpoint
from ckpt_tool.readers.base import Checkpoint
from tests.support.backed import raw

_LOCAL = (
    ("version", 4, 6),
    ("flags", 6, 8),
    ("time and date", 10, 14),
    ("CRC-32 and sizes that are true", 14, 26),  # torch has zeros there; all else is found
)
_ENTRY = (
    ("version", 4, 8),
    ("flags", 8, 10),
    ("time and date", 12, 16),
    ("disk and attributes", 34, 42),
)

#: How far above a rank's file its checkpoint is, where the file alone is none.
_ABOVE = {"model_optim_rng.pt": 2, "mp_rank_01_adapter.pt": 1}


def find_unused(content: bytes, start: int, length: int) -> dict[int, str]:
    """What no reader looks at in an archive, by byte of the file: padding, and fields of headers.

    By the layout that the zip specification gives them, worked out apart from our reader.
    """
    whole = content[start : start + length]
    end = whole.rindex(b"PK\x05\x06")
    count, size, at = struct.unpack_from("<H2L", whole, end + 10)
    unused: dict[int, str] = {}

    def mark(what: str, first: int, stop: int) -> None:
        unused.update(dict.fromkeys(range(start + first, start + stop), what))

    # A small archive does not need its zip64 end record; numbers of disks; a comment's length.
    mark("end record", at + size, end)
    mark("end record", end + 4, end + 10)
    mark("end record", end + 20, end + 22)
    for _ in range(count):
        name, extra, comment = struct.unpack_from("<3H", whole, at + 28)
        packed = struct.unpack_from("<L", whole, at + 20)[0]
        header = struct.unpack_from("<L", whole, at + 42)[0]
        for what, first, stop in _ENTRY:
            mark(f"directory: {what}", at + first, at + stop)
        mark("directory: extra", at + 46 + name, at + 46 + name + extra + comment)
        for what, first, stop in _LOCAL:
            mark(f"header: {what}", header + first, header + stop)
        local_name, local_extra = struct.unpack_from("<2H", whole, header + 26)
        content_at = header + 30 + local_name + local_extra
        mark("padding", header + 30 + local_name, content_at)
        if whole[content_at + packed : content_at + packed + 4] == b"PK\x07\x08":
            mark("descriptor", content_at + packed, content_at + packed + 16)
        at += 46 + name + extra + comment
    return unused


@dataclass
class Tally:
    """What became of flips: ``harmless`` by where they were."""

    tried: int = 0
    found: int = 0
    harmless: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        quiet = ", ".join(f"{count} in {what}" for what, count in sorted(self.harmless.items()))
        harmless = f"{sum(self.harmless.values())} harmless"
        return f"{self.tried} flips: {self.found} found, {harmless} ({quiet})"


def flips(content: bytes, places: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    """The content with one bit changed, for each byte and bit."""
    changed = bytearray(content)
    for at, bit in places:
        changed[at] ^= 1 << bit
        yield at, bytes(changed)
        changed[at] ^= 1 << bit


def scrub(path: Path) -> Checkpoint | None:
    """The checkpoint, where ``inspect --check-crc`` finds nothing wrong with it."""
    try:
        found = inspect_checkpoint([path], check_crc=form_team_alone(1))
    except FormatError:
        return None
    return found.checkpoint if found.ok else None


def contents(checkpoint: Checkpoint) -> dict[str, tuple[object, ...]]:
    """What the tensors are: names, shapes, dtypes and bits."""
    return {name: (t.shape, t.dtype, raw(t.read())) for name, t in checkpoint.items()}


def try_flips(file: Path, places: Iterable[tuple[int, int]], unused: dict[int, str]) -> Tally:
    """Flip bits of a rank's file, or of a file of torch.distributed.checkpoint, one at a time.

    Each must be found, or be where nothing is; and then the tensors are what they were.
    """
    path = file.parents[_ABOVE[file.name]] if file.name in _ABOVE else file
    path = file.parent if file.suffix == ".distcp" else path
    original, tally = file.read_bytes(), Tally()
    sound = scrub(path)
    assert sound is not None
    expected = contents(sound)
    for at, changed in flips(original, places):
        file.write_bytes(changed)
        tally.tried += 1
        checkpoint = scrub(path)
        if checkpoint is None:
            tally.found += 1
            continue
        assert at in unused, f"byte {at}: {original[at]:#x} became {changed[at]:#x}, unnoticed"
        assert contents(checkpoint) == expected, f"byte {at}"
        tally.harmless[unused[at]] = tally.harmless.get(unused[at], 0) + 1
    file.write_bytes(original)
    return tally
