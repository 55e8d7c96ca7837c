"""Changes to archives of torch.save: the pickle in one, records, directory, bytes."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from functools import lru_cache
from random import Random

from tests.fuzz.mutate_bytes import mutate_bytes
from tests.fuzz.mutate_json import make_text
from tests.fuzz.mutate_pickle import mutate_pickle
from tests.support.crafted import Entry, crafted_zip

_ZIP64 = b"\1\0\x08\0" + b"\xff" * 8
_SIZES = (0, 1, 2**31, 2**32 - 2, 2**32 - 1, 64)


def mutate_zip(data: bytes, rng: Random) -> bytes:
    """The pickle (most often), the directory and records, or plain bytes."""
    kind = rng.random()
    if kind < 0.12:
        return mutate_bytes(data, rng)
    entries = list(_split(data))
    count, shift, zip64 = None, 0, rng.random() < 0.1
    if kind < 0.75:
        at = next((n for n, e in enumerate(entries) if e.name.endswith("data.pkl")), 0)
        entries[at] = replace(entries[at], data=mutate_pickle(entries[at].data, rng))
    else:
        for _ in range(rng.choice((1, 1, 2))):
            rng.choice(_CHANGES)(entries, rng)
        if rng.random() < 0.2:
            count = rng.choice((0, 1, len(entries) + 1, 65535, len(entries) - 1)) % 65536
        if rng.random() < 0.2:
            shift = rng.choice((-1, 1, 1000, -20))
    try:
        return crafted_zip(entries, zip64=zip64, count=count, shift=shift)
    except Exception:  # a number that no field holds
        return mutate_bytes(data, rng)


@lru_cache(maxsize=64)
def _split(data: bytes) -> tuple[Entry, ...]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return tuple(Entry(info.filename, file.read(info)) for info in file.infolist())


def _other_data(entries: list[Entry], rng: Random) -> None:
    at = rng.randrange(len(entries))
    entries[at] = replace(entries[at], data=mutate_bytes(entries[at].data, rng))


def _other_field(entries: list[Entry], rng: Random) -> None:
    at = rng.randrange(len(entries))
    old, other = entries[at], rng.choice(entries)
    size = len(old.data)
    entries[at] = rng.choice((
        lambda: replace(old, method=rng.choice((8, 12, 14, 99))),
        lambda: replace(old, flags=rng.choice((1, 8, 0x800, 0x2000, 0xFFFF))),
        lambda: replace(old, size=rng.choice((*_SIZES, size + 1, max(size - 1, 0)))),
        lambda: replace(old, packed=rng.choice((*_SIZES, size + 1))),
        lambda: replace(old, header=rng.choice((0, 1, 30, 2**31, 2**32 - 1))),
        lambda: replace(old, extra=rng.choice((b"\1\0\x18\0", _ZIP64, rng.randbytes(9)))),
        lambda: replace(old, local_extra=b"FB" + (61).to_bytes(2, "little") + bytes(61)),
        lambda: replace(old, local_mark=rng.choice((b"PK\1\2", b"\0\0\0\0"))),
        lambda: replace(old, data=other.data),
    ))()  # fmt: skip


def _other_name(entries: list[Entry], rng: Random) -> None:
    at = rng.randrange(len(entries))
    root = entries[at].name.partition("/")[0]
    name = rng.choice((
        entries[rng.randrange(len(entries))].name,
        f"{root}/{make_text(rng)}"[:60000],
        f"{root}/data/{rng.choice(('0', '1', '00', '-1', '../0', '99999'))}",
        entries[at].name.upper(), f"/{entries[at].name}", f"../{entries[at].name}", "data.pkl", "",
    )).encode("utf-8", "replace").decode()  # fmt: skip
    entries[at] = replace(entries[at], name=name)


def _drop(entries: list[Entry], rng: Random) -> None:
    del entries[rng.randrange(len(entries))]
    if not entries:
        entries.append(Entry("a/data.pkl", b"}."))


def _double(entries: list[Entry], rng: Random) -> None:
    entries.insert(rng.randrange(len(entries)), rng.choice(entries))


def _exchange(entries: list[Entry], rng: Random) -> None:
    one, other = rng.randrange(len(entries)), rng.randrange(len(entries))
    entries[one], entries[other] = entries[other], entries[one]


_CHANGES = (_other_data, _other_data, _other_field, _other_field, _other_field, _other_name, _drop,
            _double, _exchange)  # fmt: skip
