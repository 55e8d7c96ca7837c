"""The stack machine behind :mod:`ckpt_tool.readers.torch_save.unpickle`; it has no way to import.

Work and memory are linear in the size of the pickle: memo slots are a dict, so an index of four
billion allocates nothing; dict keys are plain and short, or things of their own whatever they hold,
so no nested key can exhaust the stack and no long one is hashed again and again (nor many integers
of one hash: they have 64 bits); names
are short; calls take few arguments, and no more text in all than the pickle has, so nothing large
is copied again and again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.torch_save.standins import MAX_ITEMS, MAX_NAME, Builder, StandIn

Resolve = Callable[[str, str], Any]
_U16 = struct.Struct("<H").unpack_from
_U32 = struct.Struct("<I").unpack_from
Operation = Callable[["Machine", int], int]
_BINGET = ord("h")
_LONG_BINGET = ord("j")
_LONG_BINPUT = ord("r")
#: A call's text up to this is not counted: names of devices and of encodings are written once.
_SHORT = 64


class Stop(Exception):  # noqa: N818 (a signal, not an error)
    pass


class Machine:
    """The stack machine; each opcode is a method that gets the position after it."""

    def __init__(self, data: bytes, resolve: Resolve, persistent: Callable[[Any], Any]) -> None:
        self.data = data
        self.resolve = resolve
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.room = len(data)  # for the text of calls

    def run(self, table: Sequence[Operation]) -> Any:
        """Run to the end. Memo opcodes, half of a state dict's pickle, are run in place."""
        data, memo, pos = self.data, self.memo, 0
        try:
            while True:
                opcode = data[pos]
                pos += 1
                if opcode == _LONG_BINPUT:
                    memo[_U32(data, pos)[0]] = self.stack[-1]
                    pos += 4
                elif opcode == _BINGET:
                    self.stack.append(memo[data[pos]])
                    pos += 1
                elif opcode == _LONG_BINGET:
                    self.stack.append(memo[_U32(data, pos)[0]])
                    pos += 4
                else:
                    pos = table[opcode](self, pos)
        except Stop:
            return self.stack[-1]

    def take(self, pos: int, size: int) -> bytes:
        piece = self.data[pos : pos + size]
        if len(piece) != size:
            raise IndexError(f"{size} bytes at {pos}")
        return piece

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    # --- structure
    def op_proto(self, pos: int) -> int:
        if not 2 <= self.data[pos] <= 5:
            raise FormatError(f"pickle protocol {self.data[pos]}, expected 2 to 5")
        return pos + 1

    def op_frame(self, pos: int) -> int:
        return pos + 8

    def op_stop(self, pos: int) -> int:
        raise Stop

    def op_mark(self, pos: int) -> int:
        self.marks.append(self.stack)
        self.stack = []
        return pos

    def op_pop(self, pos: int) -> int:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()
        return pos

    def op_pop_mark(self, pos: int) -> int:
        self.pop_mark()
        return pos

    def op_dup(self, pos: int) -> int:
        self.stack.append(self.stack[-1])
        return pos

    # --- memo
    def op_binput(self, pos: int) -> int:
        self.memo[self.data[pos]] = self.stack[-1]
        return pos + 1

    def op_memoize(self, pos: int) -> int:
        self.memo[len(self.memo)] = self.stack[-1]
        return pos

    # --- small numbers: with the memo, most of what a state dict's pickle consists of
    def op_binint1(self, pos: int) -> int:
        self.stack.append(self.data[pos])
        return pos + 1

    def op_binint2(self, pos: int) -> int:
        self.stack.append(_U16(self.data, pos)[0])
        return pos + 2

    # --- containers
    def op_append(self, pos: int) -> int:
        value = self.stack.pop()
        _filled(self.stack[-1], list).append(value)
        return pos

    def op_appends(self, pos: int) -> int:
        items = self.pop_mark()
        _filled(self.stack[-1], list).extend(items)
        return pos

    def op_setitem(self, pos: int) -> int:
        value = self.stack.pop()
        key = self.stack.pop()
        _filled(self.stack[-1], dict)[_plain_key(key)] = value
        return pos

    def op_setitems(self, pos: int) -> int:
        items = self.pop_mark()
        target = _filled(self.stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_plain_key(key)] = value
        return pos

    def op_additems(self, pos: int) -> int:
        items = self.pop_mark()
        _filled(self.stack[-1], set).update(map(_plain_key, items))
        return pos

    def op_frozenset(self, pos: int) -> int:
        items = self.pop_mark()
        self.stack.append(frozenset(map(_plain_key, items)))
        return pos

    def op_tuple(self, pos: int) -> int:
        items = self.pop_mark()
        self.stack.append(tuple(items))
        return pos

    def op_dict(self, pos: int) -> int:
        items = self.pop_mark()
        pairs = zip(map(_plain_key, items[::2]), items[1::2], strict=True)
        self.stack.append(dict(pairs))
        return pos

    def op_list(self, pos: int) -> int:
        items = self.pop_mark()
        self.stack.append(items)
        return pos

    # --- names and calls
    def op_global(self, pos: int) -> int:
        middle = self.data.index(b"\n", pos)
        end = self.data.index(b"\n", middle + 1)
        module, name = self.data[pos:middle].decode(), self.data[middle + 1 : end].decode()
        self.stack.append(self.resolve(_short_name(module), _short_name(name)))
        return end + 1

    def op_stack_global(self, pos: int) -> int:
        name = self.stack.pop()
        module = self.stack.pop()
        self.stack.append(self.resolve(_short_name(module), _short_name(name)))
        return pos

    def op_binpersid(self, pos: int) -> int:
        self.stack.append(self.persistent(self.stack.pop()))
        return pos

    def op_reduce(self, pos: int) -> int:
        args = _expect(self.stack.pop(), tuple)
        if len(args) > MAX_ITEMS:
            raise FormatError(f"a pickled call with {len(args)} arguments")
        text = sum(len(arg) for arg in args if isinstance(arg, (str, bytes)))
        self.room -= text if text > _SHORT else 0
        if self.room < 0:
            raise FormatError("pickled calls with the same long text again and again")
        self.stack.append(_expect(self.stack.pop(), Builder).call(*args))
        return pos

    def op_newobj_ex(self, pos: int) -> int:
        if _expect(self.stack.pop(), dict):
            raise FormatError("keyword arguments of a pickled constructor")
        return self.op_reduce(pos)

    def op_build(self, pos: int) -> int:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, StandIn):
            target.set_state(state)
        elif not isinstance(target, dict):  # an OrderedDict's attributes (_metadata) say nothing
            raise FormatError(f"pickled state for a {type(target).__name__}")
        return pos


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise FormatError(f"a pickled {kind.__name__} is a {type(value).__name__}")
    return value


def _filled(value: Any, kind: type) -> Any:
    """The container that items go into; a class of the file's own forgets them."""
    return kind() if isinstance(value, StandIn) else _expect(value, kind)


def _plain_key(key: Any) -> Any:
    if isinstance(key, (str, bytes)):
        fits = len(key) <= MAX_NAME
    elif isinstance(key, int):
        fits = -(1 << 63) <= key < 1 << 64
    else:
        fits = not isinstance(key, (list, dict, set))
    if not fits:
        raise FormatError(f"a pickled {type(key).__name__} as a key, or one too long for a name")
    is_plain = isinstance(key, (str, bytes, int, StandIn, type(None)))
    return key if is_plain else StandIn(type(key).__name__, ())  # such as pairs of dtypes


def _short_name(name: Any) -> str:
    if len(_expect(name, str)) > MAX_NAME:
        raise FormatError(f"a name of {len(name)} characters")
    return str(name)
