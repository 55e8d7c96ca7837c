"""Pickles (protocol 2) of objects whose classes are not imported: names and state, spelled out.

``torch.load`` and ``pickle.load`` of a reader that has the classes gives real objects. Writing
needs neither torch nor megatron-core, whose import costs more than moving a small model.
"""

from __future__ import annotations

import pickle
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


def make_pickle(value: Any) -> bytes:
    """The pickle of ``value``: None, bool, int, float, str, list, tuple, dict and the above."""
    writer = _Writer()
    writer.put(value)
    return pickle.PROTO + b"\x02" + bytes(writer.out) + pickle.STOP


class _Writer:
    """Appends opcodes; names and texts that come again are taken from the memo."""

    def __init__(self) -> None:
        self.out = bytearray()
        self._memo: dict[Name | str, int] = {}

    def put(self, value: Any) -> None:
        _PUT[type(value)](self, value)

    def put_once(self, value: Name | str, opcodes: bytes) -> None:
        known = self._memo.get(value)
        if known is not None:
            self.out += pickle.LONG_BINGET + struct.pack("<I", known)
            return
        self._memo[value] = len(self._memo)
        self.out += opcodes + pickle.LONG_BINPUT + struct.pack("<I", self._memo[value])

    def put_none(self, value: None) -> None:
        self.out += pickle.NONE

    def put_bool(self, value: bool) -> None:
        self.out += pickle.NEWTRUE if value else pickle.NEWFALSE

    def put_int(self, value: int) -> None:
        if 0 <= value < 256:
            self.out += pickle.BININT1 + bytes([value])
        elif -(1 << 31) <= value < 1 << 31:
            self.out += pickle.BININT + struct.pack("<i", value)
        else:
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.out += pickle.LONG1 + bytes([len(raw)]) + raw

    def put_float(self, value: float) -> None:
        self.out += pickle.BINFLOAT + struct.pack(">d", value)

    def put_text(self, value: str) -> None:
        raw = value.encode("utf-8")
        self.put_once(value, pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw)

    def put_name(self, value: Name) -> None:
        self.put_once(value, pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())

    def put_tuple(self, values: tuple[Any, ...]) -> None:
        self.out += pickle.MARK
        for value in values:
            self.put(value)
        self.out += pickle.TUPLE

    def put_list(self, values: list[Any]) -> None:
        self.out += pickle.EMPTY_LIST + pickle.MARK
        for value in values:
            self.put(value)
        self.out += pickle.APPENDS

    def put_dict(self, value: dict[Any, Any]) -> None:
        self.put_items(value.items())

    def put_pairs(self, value: Pairs) -> None:
        self.put_items(value.items)

    def put_items(self, items: Iterable[tuple[Any, Any]]) -> None:
        self.out += pickle.EMPTY_DICT + pickle.MARK
        for key, item in items:
            self.put(key)
            self.put(item)
        self.out += pickle.SETITEMS

    def put_call(self, value: Call) -> None:
        self.put(value.function)
        self.put(value.args)
        self.out += pickle.REDUCE

    def put_instance(self, value: Instance) -> None:
        self.put(value.kind)
        self.out += pickle.EMPTY_TUPLE + pickle.NEWOBJ
        self.put(value.state)
        self.out += pickle.BUILD

    def put_persistent(self, value: Persistent) -> None:
        self.put(value.id)
        self.out += pickle.BINPERSID


_PUT: dict[type, Any] = {
    type(None): _Writer.put_none,
    bool: _Writer.put_bool,
    int: _Writer.put_int,
    float: _Writer.put_float,
    str: _Writer.put_text,
    tuple: _Writer.put_tuple,
    list: _Writer.put_list,
    dict: _Writer.put_dict,
    Pairs: _Writer.put_pairs,
    Name: _Writer.put_name,
    Call: _Writer.put_call,
    Instance: _Writer.put_instance,
    Persistent: _Writer.put_persistent,
}
