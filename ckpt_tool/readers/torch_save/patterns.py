"""The opcodes of an object in a pickle, as a pattern that matches those of others of its class.

Numbers, texts and places in the memo may differ, all else is the same. Each opcode says how long it
is, and so does each text: what matches, and has texts of the lengths that it says, can be read in
no other way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

from ckpt_tool.readers.torch_save.spans import LONG, MEMOIZE, Span
from ckpt_tool.readers.torch_save.standins import Builder
from ckpt_tool.tensors.dtypes import DType

Groups = tuple[bytes, ...]
Memo = Mapping[int, Any]
_Make = Callable[[Groups, Memo], Any]

#: Tuples of numbers that a pattern keeps, to hand out the same one again.
_KEPT = 4096

_LONGEST = 255
_PATTERNS = {
    "number": rb"(K.|M..|J...[\0-\x7f]|\x8a\x05....[\0-\x7f]|\x8a\x06.{5}[\0-\x7f])",
    "get": rb"(h.|j....)",
    "text": rb"\x8c(.)([ -~]{0,255})\x94",
}


#: What values may be made of, besides numbers and texts.
_PLAIN_VALUES = (str, int, DType, type(None))


class Number(int):
    """A number in an example: what is made of it must hold for any other, too."""

    group: int

    def __bool__(self) -> bool:
        raise ValueError("a number that is looked at")


class Text(str):
    """A text in an example."""

    group: int
    is_kept = False  # whether the group has its place in the memo

    def __bool__(self) -> bool:
        raise ValueError("a text that is looked at")


#: What an object may take from the memo to look at; what can be changed is none of it.
_FIXED = (str, bytes, int, float, type(None), tuple, DType, Builder)


def mark(kind: str, value: Any, group: int | None) -> Any:
    """What an opcode of an example has pushed: known by its ``group``, if it may differ."""
    if kind == "get":
        if group is None:
            return value if isinstance(value, _FIXED) else object()
        if not isinstance(value, str):
            return object()
    marked: Any = Number(value) if kind == "number" else Text(value)
    marked.group, marked.is_kept = group, kind == "get"
    return marked


class MismatchError(Exception):
    """What is in the memo is no text, as it was in the examples."""


def read_number(raw: bytes) -> int:
    """The number that an opcode, with its argument, is about."""
    return int.from_bytes(raw[2 if raw[0] == LONG else 1 :], "little")


class Pattern:
    """Matches the opcodes of a span, where ``loose`` ones take anything from the memo.

    ``puts``: how many objects each match puts there. ``cost``: the most bytes that are looked at.
    """

    def __init__(self, span: Span, loose: set[int]) -> None:
        self.loose = loose
        self.puts = sum(raw[-1] == MEMOIZE for kind, raw in span.tokens if kind in ("", "text"))
        parts, self._texts, self._gets = [], [], []
        self.groups: dict[int, int] = {}  # by the number of the opcode
        count = 0
        for at, (kind, raw) in enumerate(span.tokens):
            if not kind or (kind == "get" and at not in loose):
                parts.append(re.escape(raw))
                continue
            parts.append(_PATTERNS[kind])
            if kind == "get":
                self._gets.append(count)
            elif kind == "text":
                self._texts.append((count, count + 1))
            self.groups[at] = count + (kind == "text")
            count += 2 if kind == "text" else 1
        self.cost = sum(len(raw) + _LONGEST * (kind == "text") for kind, raw in span.tokens)
        self._match = re.compile(b"".join(parts), re.DOTALL).match
        self._make: _Make = lambda groups, memo: None

    def make(self, value: Any) -> None:
        """Have ``value``, of numbers and texts of an example, made of those of each match.

        ValueError where there is something else in it.
        """
        self._make = _compile(value)

    def read(self, data: bytes, pos: int, memo: dict[int, Any]) -> tuple[int, Any] | None:
        """Where the object that begins at ``pos`` ends, and its value; None where it is another.

        KeyError where the memo lacks what is taken from it.
        """
        found = self._match(data, pos)
        if found is None:
            return None
        groups = found.groups()
        for size, text in self._texts:
            if int.from_bytes(groups[size], "little") != len(groups[text]):
                return None
        if self._gets:
            most = len(memo)
            if any(read_number(groups[get]) >= most for get in self._gets):
                return None
        try:
            value = self._make(groups, memo)
        except MismatchError:
            return None
        return found.end(), value


def _compile(node: Any) -> _Make:
    """What makes a value like ``node``: of numbers, texts, plain values, and tuples of these."""
    if isinstance(node, Number):
        return _decode(node.group)
    if isinstance(node, Text):
        at = node.group
        return _take(at) if node.is_kept else lambda groups, memo: groups[at].decode()
    if isinstance(node, tuple):
        return _compile_tuple(node)
    if not isinstance(node, _PLAIN_VALUES):
        raise ValueError(f"a {type(node).__name__}")
    return lambda groups, memo: node


def _decode(at: int) -> _Make:
    def make(groups: Groups, memo: Memo) -> int:
        raw = groups[at]
        return int.from_bytes(raw[2 if raw[0] == LONG else 1 :], "little")

    return make


def _take(at: int) -> _Make:
    def make(groups: Groups, memo: Memo) -> str:
        found = memo[read_number(groups[at])]
        if not isinstance(found, str):
            raise MismatchError
        return found

    return make


def _compile_tuple(node: tuple[Any, ...]) -> _Make:
    parts = [(at, _compile(each)) for at, each in enumerate(node) if not _is_same(each)]
    collect = getattr(type(node), "_make", tuple)

    def make(groups: Groups, memo: Memo) -> Any:
        row = [*node]
        for at, part in parts:
            row[at] = part(groups, memo)
        return collect(row)

    numbers = _list_numbers(node)
    if numbers is None or not numbers:
        return make
    pick, known = itemgetter(*numbers), dict[Any, Any]()

    def make_once(groups: Groups, memo: Memo) -> Any:
        raw = pick(groups)
        found = known.get(raw)
        if found is None:
            found = make(groups, memo)
            if len(known) < _KEPT:
                known[raw] = found
        return found

    return make_once


def _is_same(node: Any) -> bool:
    """Whether a value is that of each match."""
    return isinstance(node, _PLAIN_VALUES) and not isinstance(node, (Number, Text))


def _list_numbers(node: Any) -> list[int] | None:
    """The groups of the numbers that a value is made of; None where there are texts in it."""
    if isinstance(node, Text):
        return None
    if isinstance(node, Number):
        return [node.group]
    found: list[int] = []
    for each in node if isinstance(node, tuple) else ():
        inner = _list_numbers(each)
        if inner is None:
            return None
        found += inner
    return found
