"""Pickles (protocol 2) of objects whose classes are not imported: names and state, spelled out.

``torch.load`` and ``pickle.load`` of a reader that has the classes gives real objects. Writing
needs neither torch nor megatron-core, whose import costs more than moving a small model.
Opcodes are those of ``pickletools``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class by its place: pickled as that name."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """The result of calling ``function`` with ``args``."""

    function: Name
    args: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """An object made without arguments, whose state is then set to ``state``."""

    kind: Name
    state: Any


@dataclass(frozen=True, slots=True)
class Persistent:
    """Something outside of the pickle, by its id (storages of ``torch.save``)."""

    id: Any


@dataclass(frozen=True, slots=True)
class Pairs:
    """A dict by its items, made as they are written: with keys that are no keys here."""

    items: Iterable[tuple[Any, Any]]


def pickled(value: Any) -> bytes:
    """The pickle of ``value``: None, bool, int, float, str, list, tuple, dict and the above."""
    writer = _Writer()
    writer.put(value)
    return b"\x80\x02" + bytes(writer.out) + b"."


class _Writer:
    """Appends opcodes; names and texts that come again are taken from the memo."""

    def __init__(self) -> None:
        self.out = bytearray()
        self._memo: dict[Name | str, int] = {}

    def put(self, value: Any) -> None:
        _PUT[type(value)](self, value)

    def remembered(self, value: Name | str, opcodes: bytes) -> None:
        known = self._memo.get(value)
        if known is not None:
            self.out.extend(b"j" + struct.pack("<I", known))
            return
        self._memo[value] = len(self._memo)
        self.out.extend(opcodes + b"r" + struct.pack("<I", self._memo[value]))

    def text(self, value: str) -> None:
        raw = value.encode("utf-8")
        self.remembered(value, b"X" + struct.pack("<I", len(raw)) + raw)

    def name(self, value: Name) -> None:
        self.remembered(value, f"c{value.module}\n{value.name}\n".encode())

    def integer(self, value: int) -> None:
        if 0 <= value < 256:
            self.out.extend(b"K" + bytes([value]))
        elif -(1 << 31) <= value < 1 << 31:
            self.out.extend(b"J" + struct.pack("<i", value))
        else:
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.out.extend(b"\x8a" + bytes([len(raw)]) + raw)

    def sequence(self, opening: bytes, values: tuple[Any, ...] | list[Any], end: bytes) -> None:
        self.out.extend(opening)
        for value in values:
            self.put(value)
        self.out.extend(end)

    def mapping(self, items: Iterable[tuple[Any, Any]]) -> None:
        self.out.extend(b"}(")
        for key, item in items:
            self.put(key)
            self.put(item)
        self.out.extend(b"u")

    def call(self, value: Call) -> None:
        self.put(value.function)
        self.put(value.args)
        self.out.extend(b"R")

    def instance(self, value: Instance) -> None:
        self.put(value.kind)
        self.out.extend(b")\x81")
        self.put(value.state)
        self.out.extend(b"b")

    def persistent(self, value: Persistent) -> None:
        self.put(value.id)
        self.out.extend(b"Q")


_PUT: dict[type, Any] = {
    type(None): lambda writer, value: writer.out.extend(b"N"),
    bool: lambda writer, value: writer.out.extend(b"\x88" if value else b"\x89"),
    int: _Writer.integer,
    float: lambda writer, value: writer.out.extend(b"G" + struct.pack(">d", value)),
    str: _Writer.text,
    tuple: lambda writer, value: writer.sequence(b"(", value, b"t"),
    list: lambda writer, value: writer.sequence(b"](", value, b"e"),
    dict: lambda writer, value: writer.mapping(value.items()),
    Pairs: lambda writer, value: writer.mapping(value.items),
    Name: _Writer.name,
    Call: _Writer.call,
    Instance: _Writer.instance,
    Persistent: _Writer.persistent,
}
