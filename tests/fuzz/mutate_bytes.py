"""Changes to bytes that know nothing of their format."""

from __future__ import annotations

from random import Random

#: Numbers at which readers go wrong, in the widths in which formats have them.
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
          1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
_MOST = 1 << 18


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """One to four changes; never more than 256 KiB longer."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(_CHANGES)(changed, rng)
    return bytes(changed[: len(data) + _MOST])


def _flip(data: bytearray, rng: Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: Random) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.randrange(256)


def _insert(data: bytearray, rng: Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 100)))


def _delete(data: bytearray, rng: Random) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 1, 2, 4, 8, 64, 1000))]


def _repeat(data: bytearray, rng: Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[at : at + rng.choice((1, 4, 16, 200))] * rng.choice((1, 2, 50))


def _move(data: bytearray, rng: Random) -> None:
    start, to = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    piece = data[start : start + rng.choice((1, 4, 16, 200))]
    data[to : to + len(piece)] = piece


def _truncate(data: bytearray, rng: Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _put_number(data: bytearray, rng: Random) -> None:
    width = rng.choice((1, 2, 4, 8))
    number = (rng.choice(_EDGES) + rng.choice((0, 0, 1, -1))) % (1 << 8 * width)
    at = rng.randrange(len(data) + 1)
    data[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))  # type: ignore[arg-type]


_CHANGES = (_flip, _flip, _set, _insert, _delete, _repeat, _move, _truncate, _put_number)
