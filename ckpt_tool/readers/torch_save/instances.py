"""A pickle of very many small objects of a few classes: each is read when its state is set.

Of such a class the pickle has the same opcodes again and again, with other numbers, texts and
places in the memo. So once two objects had the same ones, a pattern takes the place of the machine
(:mod:`ckpt_tool.readers.torch_save.patterns`): it matches all the opcodes of the next one, and only
what differs is looked at. What no pattern matches is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckpt_tool.common.errors import CkptError, FormatError
from ckpt_tool.readers.torch_save.machine import Machine, Operation, Resolve
from ckpt_tool.readers.torch_save.memos import Layer, SkippingMemo
from ckpt_tool.readers.torch_save.patterns import Number, Pattern, Text, mark
from ckpt_tool.readers.torch_save.spans import Span, make_span
from ckpt_tool.readers.torch_save.standins import Builder, StandIn
from ckpt_tool.readers.torch_save.unpickle import MALFORMED, STEPS, TABLE

#: Makes the value that takes the place of an object of a class: a plain one, or a tuple of those.
#: It looks at no number or text, but for its type. FormatError where the object is malformed: it
#: stays a stand-in then.
Finish = Callable[[StandIn], Any]

#: Bytes of the opcodes of an object that a pattern may be made of.
_LONGEST = 2048
#: How often a pattern may be looked for: what writers make takes a few.
_MOST = 128
#: For each byte of the pickle, how many may be looked at in vain; of what writers make, not one.
_FUEL = 16


def unpickle_instances(
    data: bytes, resolve: Resolve, persistent: Callable[[Any], Any], finish: Mapping[str, Finish]
) -> Any:
    """As :func:`.unpickle`, with what ``finish`` makes of objects, by their class, in their place.

    Named tuples that it makes may be keys.
    """
    machine = InstanceMachine(data, resolve, persistent, finish)
    try:
        return machine.run_all()
    except MALFORMED as error:
        raise FormatError(f"malformed pickle ({type(error).__name__}: {error})") from error
    finally:
        # Its memo asks it to make objects: a circle, which would keep both until it is looked for.
        machine.__dict__.clear()


class InstanceMachine(Machine):
    """A machine that makes patterns of what it runs, and runs what matches none."""

    def __init__(
        self,
        data: bytes,
        resolve: Resolve,
        persistent: Callable[[Any], Any],
        finish: Mapping[str, Finish],
    ) -> None:
        super().__init__(data, resolve, persistent)
        self.finish = finish
        self._patterns: dict[str, list[Pattern]] = {}  # by the class's full name
        self._seen: dict[tuple[str, object], Span] = {}
        self._made: dict[tuple[str, object], Pattern] = {}
        self._begun: list[tuple[StandIn, int, int]] = []
        self._skipping: SkippingMemo | None = None
        self._room = self._fuel = 0

    def run_all(self) -> Any:
        """The object that the pickle is of; patterns are made as objects are."""
        self._room, self._fuel = _MOST, _FUEL * len(self.data)
        self.memo = self._skipping = SkippingMemo(self._make_again)
        return self.run(_TABLE)

    def op_newobj(self, pos: int) -> int:
        """An object of a class: by a pattern, where one matches."""
        stack = self.stack
        builder = stack[-2] if len(stack) > 1 else None
        if not isinstance(builder, Builder) or stack[-1] != ():
            return self.op_reduce(pos)
        patterns = self._patterns.get(builder.qualname, [])
        for at, pattern in enumerate(patterns):
            found = pattern.read(self.data, pos, self.memo)
            if found is not None:
                stop, value = found
                stack[-2:] = [value]
                if pattern.puts and self._skipping is not None:
                    self._skipping.skip(pattern.puts, builder.qualname, pos, stop)
                if at:
                    patterns.insert(0, patterns.pop(at))  # the next one is like it
                return stop
            self._fuel -= pattern.cost
        if self._fuel < 0:
            self._patterns.clear()
            self._room = 0
        pos = self.op_reduce(pos)
        self._begun.append((stack[-1], pos, len(self.memo)))
        return pos

    def op_build(self, pos: int) -> int:
        """Its state: it is whole."""
        pos = super().op_build(pos)
        target = self.stack[-1]
        if isinstance(target, StandIn) and target.kind in self.finish:
            try:
                self.stack[-1] = self.finish[target.kind](target)
            except FormatError:
                return pos
            while self._begun:
                begun, start, first = self._begun.pop()
                if begun is target:
                    self._learn(target, start, pos, first)
                    break
        return pos

    def op_setitem(self, pos: int) -> int:
        """An item; a named tuple is as good a key as a text."""
        if not _is_made(self.stack[-2]):
            return super().op_setitem(pos)
        value, key = self.stack.pop(), self.stack.pop()
        _require_dict(self.stack[-1])[key] = value
        return pos

    def op_setitems(self, pos: int) -> int:
        """Several of them, whose keys are of one kind."""
        if not self.stack or not _is_made(self.stack[0]):
            return super().op_setitems(pos)
        items = self.pop_mark()
        if not all(map(_is_made, items[::2])):
            raise FormatError("a dictionary with keys of several kinds")
        _require_dict(self.stack[-1]).update(zip(items[::2], items[1::2], strict=True))
        return pos

    def _learn(self, target: StandIn, start: int, stop: int, first: int) -> None:
        """Make a pattern of an object, if there was one with the same opcodes."""
        if stop - start > _LONGEST or self._room <= 0:
            return
        span = make_span(self.data[start:stop])
        if span is None:
            return
        self._room -= 1
        key = (target.qualname, span.skeleton)
        other, old = self._seen.setdefault(key, span), self._made.get(key)
        loose = span.list_differences(other) | (old.loose if old is not None else set())
        if other is span or (old is not None and loose == old.loose):
            return
        pattern = Pattern(span, loose)
        example = _Example(self, target.qualname, first)
        try:
            pattern.make(example.run_span(span, pattern, start))
        except (CkptError, *MALFORMED):
            return
        self._made[key] = pattern
        made = (pattern for (name, _), pattern in self._made.items() if name == target.qualname)
        self._patterns[target.qualname] = list(made)

    def _make_again(self, qualname: str, first: int, start: int, stop: int) -> dict[int, Any]:
        """What an object that a pattern has matched would have put into the memo."""
        part = _Part(self, qualname, first)
        part.run_to(start, stop)
        return dict(part.memo)


class _Part(InstanceMachine):
    """Runs the opcodes of one object of a pickle; ``first``: how many are in the memo before it."""

    def __init__(self, whole: InstanceMachine, qualname: str, first: int) -> None:
        super().__init__(whole.data, whole.resolve, whole.persistent, whole.finish)
        self.memo = Layer(whole.memo, first)
        self.stack = [StandIn(qualname, ())]

    def run_to(self, pos: int, stop: int) -> int:
        """Run from one position to another one."""
        while pos < stop:
            pos = _STEPS[self.data[pos]](self, pos + 1)
        return pos


class _Example(_Part):
    """Makes a value of which every number and text is known again, and refuses to use any."""

    def run_span(self, span: Span, pattern: Pattern, pos: int) -> Any:
        """The value of the object whose opcodes ``span`` has, and which lie at ``pos``.

        FormatError or ValueError where it depends on what may differ.
        """
        for at, (kind, raw) in enumerate(span.tokens):
            stop = pos + len(raw)
            pos = self.run_to(pos, pos + 1)
            if kind:
                self.stack[-1] = mark(kind, self.stack[-1], pattern.groups.get(at))
            self.run_to(pos, stop)
            pos = stop
        (value,) = self.stack
        if self.marks:
            raise FormatError("an object that is not whole")
        return value

    def op_reduce(self, pos: int) -> int:
        """A call: torch.Size alone makes the same of all numbers."""
        builder, args = self.stack[-2:]
        if args and getattr(builder, "qualname", "") != "torch.Size":
            raise FormatError("a call")
        return super().op_reduce(pos)

    def op_setitem(self, pos: int) -> int:
        """An item: its key is the same in all."""
        if isinstance(self.stack[-2], (Number, Text)):
            raise FormatError("a key that may differ")
        return super().op_setitem(pos)

    def op_setitems(self, pos: int) -> int:
        """Several of them."""
        if any(isinstance(key, (Number, Text)) for key in self.stack[::2]):
            raise FormatError("a key that may differ")
        return super().op_setitems(pos)


def _is_made(key: Any) -> bool:
    return isinstance(key, tuple) and type(key) is not tuple


def _require_dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"items of a pickled {type(value).__name__}")
    return value


_OWN = {b"\x81": "op_newobj", b"b": "op_build", b"s": "op_setitem", b"u": "op_setitems"}


def _call(name: str) -> Operation:
    return lambda machine, pos: int(getattr(machine, name)(pos))


_TABLE, _STEPS = [*TABLE], [*STEPS]
for _opcode, _name in _OWN.items():
    _TABLE[_opcode[0]] = getattr(InstanceMachine, _name)
    _STEPS[_opcode[0]] = _call(_name)
_STEPS[ord("R")] = _call("op_reduce")
