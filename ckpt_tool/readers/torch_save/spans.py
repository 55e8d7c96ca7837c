"""The opcodes of a small object in a pickle, one by one."""

from __future__ import annotations

from dataclasses import dataclass

#: Without those that look a name up: one text must not stand for another there.
_PLAIN = frozenset(b")]}(t\x85\x86\x87\x94R\x81bsuaeN\x88\x89")
_NUMBERS = {ord("K"): 1, ord("M"): 2, ord("J"): 4}
LONG, MEMOIZE = 0x8A, 0x94
_GETS = {ord("h"): 1, ord("j"): 4}
#: Of up to 255 characters, as protocol 4 has them and later ones.
_TEXT, _MEMOIZED = 0x8C, b"\x94"


@dataclass(frozen=True, slots=True)
class Span:
    """The opcodes of an object behind the one that makes it: kind and bytes of each.

    A text goes with the opcode behind it, which puts it into the memo.
    """

    tokens: tuple[tuple[str, bytes], ...]

    @property
    def skeleton(self) -> tuple[object, ...]:
        """What objects have in common that one pattern may be made of."""
        return tuple(kind or raw for kind, raw in self.tokens)

    def list_differences(self, other: Span) -> set[int]:
        """The numbers of the opcodes that take something else from the memo."""
        pairs = enumerate(zip(self.tokens, other.tokens, strict=True))
        return {at for at, (one, two) in pairs if one[0] == "get" and one != two}


def make_span(data: bytes) -> Span | None:
    """The opcodes ``data``; None where there are others than small objects are made of."""
    tokens, pos = [], 0
    while pos < len(data):
        kind, size = _measure(data, pos)
        if not size:
            return None
        tokens.append((kind, data[pos : pos + size]))
        pos += size
    if pos != len(data):
        return None
    return Span(tuple(tokens))


def _measure(data: bytes, pos: int) -> tuple[str, int]:
    """Kind and size of an opcode, with what belongs to it; a size of 0 where it is another one."""
    opcode = data[pos]
    if opcode == _TEXT:
        return _measure_text(data, pos)
    if opcode == LONG:
        return "number", 2 + data[pos + 1]
    if opcode in _NUMBERS:
        return "number", 1 + _NUMBERS[opcode]
    if opcode in _GETS:
        return "get", 1 + _GETS[opcode]
    return "", int(opcode in _PLAIN)


def _measure_text(data: bytes, pos: int) -> tuple[str, int]:
    size = 2 + data[pos + 1]
    return "text", (size + 1 if data[pos + size : pos + size + 1] == _MEMOIZED else 0)
