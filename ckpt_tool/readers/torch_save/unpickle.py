"""A pickle reader that cannot run code (Python's pickle format, protocols 2 to 5).

Python's own unpickler is a machine that imports names and calls them. This one knows the same
opcodes but has no way to import: a name is looked up with the ``resolve`` function it is given,
which answers with plain data or a :class:`Builder`, or refuses. Only builders are called.
Opcodes are those of ``pickletools``; the text opcodes of protocols 0 and 1, persistent ids as
text, extension registries and out-of-band buffers are refused: ``torch.save`` writes none.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from ckpt_tool.common.errors import FormatError, UnsafeContentError
from ckpt_tool.readers.torch_save.machine import Machine, Operation, Resolve, Stop
from ckpt_tool.readers.torch_save.standins import Builder

#: Bytes of an integer: random generators have states of 16.
_MOST_DIGITS = 256


def _refused(machine: Machine, pos: int) -> NoReturn:
    opcode = machine.data[pos - 1 : pos]
    raise UnsafeContentError(f"pickle opcode {opcode!r} at byte {pos - 1} is not accepted")


def _push(make: Callable[[], Any]) -> Operation:
    def op(machine: Machine, pos: int) -> int:
        machine.stack.append(make())
        return pos

    return op


def _fixed(size: int, decode: Callable[[bytes], Any]) -> Operation:
    """An opcode with an argument of ``size`` bytes."""

    def op(machine: Machine, pos: int) -> int:
        machine.stack.append(decode(machine.take(pos, size)))
        return pos + size

    return op


def _counted(width: int, decode: Callable[[bytes], Any]) -> Operation:
    """An opcode with a ``width``-byte length and that many bytes."""

    def op(machine: Machine, pos: int) -> int:
        size = int.from_bytes(machine.take(pos, width), "little")
        pos += width
        machine.stack.append(decode(machine.take(pos, size)))
        return pos + size

    return op


def _short_tuple(size: int) -> Operation:
    def op(machine: Machine, pos: int) -> int:
        items = tuple(machine.stack[-size:])
        if len(items) != size:
            raise IndexError("a tuple of more than the stack holds")
        machine.stack[-size:] = [items]
        return pos

    return op


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _integer(raw: bytes) -> int:
    if len(raw) > _MOST_DIGITS:
        raise FormatError(f"an integer of {len(raw)} bytes")
    return int.from_bytes(raw, "little", signed=True)


def _table() -> list[Operation]:
    table: list[Operation] = [_refused] * 256
    opcodes: dict[bytes, Operation] = {
        b"\x80": Machine.op_proto, b"\x95": Machine.op_frame, b".": Machine.op_stop,
        b"(": Machine.op_mark, b"0": Machine.op_pop, b"1": Machine.op_pop_mark,
        b"2": Machine.op_dup, b"q": Machine.op_binput,
        b"\x94": Machine.op_memoize,
        b"a": Machine.op_append, b"e": Machine.op_appends, b"s": Machine.op_setitem,
        b"u": Machine.op_setitems, b"\x90": Machine.op_additems, b"\x91": Machine.op_frozenset,
        b"t": Machine.op_tuple, b"d": Machine.op_dict, b"l": Machine.op_list,
        b"c": Machine.op_global, b"\x93": Machine.op_stack_global,
        b"Q": Machine.op_binpersid, b"R": Machine.op_reduce, b"\x81": Machine.op_reduce,
        b"\x92": Machine.op_newobj_ex, b"b": Machine.op_build,
        b"N": _push(lambda: None), b"\x88": _push(lambda: True), b"\x89": _push(lambda: False),
        b")": _push(tuple), b"]": _push(list), b"}": _push(dict), b"\x8f": _push(set),
        b"\x85": _short_tuple(1), b"\x86": _short_tuple(2), b"\x87": _short_tuple(3),
        b"K": Machine.op_binint1, b"M": Machine.op_binint2, b"J": _fixed(4, _integer),
        b"G": _fixed(8, lambda raw: struct.unpack(">d", raw)[0]),
        b"\x8a": _counted(1, _integer), b"\x8b": _counted(4, _integer),
        b"\x8c": _counted(1, _text), b"X": _counted(4, _text), b"\x8d": _counted(8, _text),
        b"C": _counted(1, bytes), b"B": _counted(4, bytes), b"\x8e": _counted(8, bytes),
        b"U": _counted(1, _text), b"T": _counted(4, _text),
    }  # fmt: skip
    for opcode, operation in opcodes.items():
        table[opcode[0]] = operation
    return table


def _long_binput(machine: Machine, pos: int) -> int:
    machine.memo[int.from_bytes(machine.take(pos, 4), "little")] = machine.stack[-1]
    return pos + 4


def _binget(width: int) -> Operation:
    def op(machine: Machine, pos: int) -> int:
        machine.stack.append(machine.memo[int.from_bytes(machine.take(pos, width), "little")])
        return pos + width

    return op


_TABLE = _table()
#: With those that the machine runs in place.
_STEPS = [*_TABLE]
_STEPS[ord("r")], _STEPS[ord("h")], _STEPS[ord("j")] = _long_binput, _binget(1), _binget(4)


MALFORMED = (
    IndexError, KeyError, ValueError, TypeError, AttributeError, RecursionError, struct.error
)  # fmt: skip


def unpickle(data: bytes, resolve: Resolve, persistent: Callable[[Any], Any]) -> Any:
    """The object described by ``data``, made of plain data, stand-ins and what builders return.

    Raises UnsafeContentError where ``resolve`` or the opcode table refuses, FormatError where the
    pickle is malformed.
    """
    try:
        return Machine(data, resolve, persistent).run(_TABLE)
    except MALFORMED as error:
        raise FormatError(f"malformed pickle ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class Head:
    """A machine that has come to a name in the outermost dictionary, and the position after it.

    ``taken``: what was taken from the memo.
    """

    machine: Machine
    position: int
    taken: list[Any]

    def refers_to(self, value: Any) -> bool:
        """Whether the object was taken from the memo."""
        return any(each is value for each in self.taken)


class _Noted(dict[int, Any]):
    """A memo that keeps what is taken from it."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Any] = []

    def __getitem__(self, at: int) -> Any:
        self.taken.append(super().__getitem__(at))
        return self.taken[-1]


def run_head(
    data: bytes, resolve: Resolve, persistent: Callable[[Any], Any], end: int
) -> Head | None:
    """Run ``data`` beyond position ``end`` to what looks like an item's name; None if none does.

    Raises what the machine does: MALFORMED and what refuses.
    """
    machine, pos, memo = Machine(data, resolve, persistent), 0, _Noted()
    machine.memo = memo
    try:
        while pos <= end or not _is_at_name(machine):
            pos = _STEPS[data[pos]](machine, pos + 1)
    except Stop:
        return None
    return Head(machine, pos, memo.taken)


class Tail(Machine):
    """Goes on where a head has come to a name, with nothing of it but what ``memo`` gives.

    What a whole machine has below that name is out of reach: IndexError where it is asked for. Its
    items go into the outermost dictionary, which is a new one here.
    """

    def __init__(self, data: bytes, head: Head, memo: dict[int, Any]) -> None:
        machine = head.machine
        super().__init__(data[head.position :], machine.resolve, machine.persistent)
        self.state: dict[Any, Any] = {}
        self.marks, self.stack = [[self.state]], [machine.stack[-1]]
        self.memo, self.room = memo, machine.room
        self._reached: int | None = 1  # so many marks are the head's
        self._may_reach = False

    def run_to_end(self) -> bool:
        """Run all of it; whether what it ends with is the outermost dictionary."""
        return self.run(_TAIL) is self.state

    def pop_mark(self) -> list[Any]:
        """As of any machine; the items of the outermost dictionary only to put them there."""
        if len(self.marks) == self._reached:
            if not self._may_reach:
                raise IndexError("items that the head has made")
            self._reached = None
        return super().pop_mark()

    def op_setitems(self, pos: int) -> int:
        """As of any machine."""
        self._may_reach = True
        pos = super().op_setitems(pos)
        self._may_reach = False
        return pos


_TAIL = [*_TABLE]
_TAIL[ord("u")] = lambda machine, pos: machine.op_setitems(pos)


def _is_at_name(machine: Machine) -> bool:
    """After name, value, name: by the value, and so that all of it is in the memo."""
    stack = machine.stack
    is_odd = len(machine.marks) == 1 and len(stack) > 2 and len(stack) % 2 == 1
    return is_odd and isinstance(stack[-1], str) and not isinstance(stack[-2], Builder)
