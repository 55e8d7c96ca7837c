"""Pickles that repeat one another: what the second one holds, from the first one's objects.

The ranks of one run write the same pickle but for a few numbers near its beginning: where in its
mesh a rank is. So a pickle is cut where the first items of its state dict are whole. Of one that
differs in this head alone only the head is run. The tail, which is the same bytes, is run once, by
itself: it has nothing but what it makes and what it asks the head's memo for. Each object that it
asked for must be alike in both heads, or be a device mesh, which is handed out with what it is in
the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpt_tool.common.errors import CkptError
from ckpt_tool.readers.torch_save.machine import Resolve
from ckpt_tool.readers.torch_save.names import StorageType
from ckpt_tool.readers.torch_save.rebuilding import StorageRef, TensorRef
from ckpt_tool.readers.torch_save.standins import Builder, StandIn
from ckpt_tool.readers.torch_save.unpickle import MALFORMED, Head, Tail, run_head
from ckpt_tool.tensors.dtypes import DType

#: How far from the beginning pickles may differ.
_HEAD = 1 << 14
#: How much of two heads is compared: objects, and characters of text.
_ROOM = 1 << 18
_MESH = "DeviceMesh"

#: What is alike where it is equal.
_ATOMS = (str, bytes, int, float, bool, type(None), DType, StorageType, StorageRef, TensorRef)


@dataclass(frozen=True)
class Replayed:
    """A state dict: first items of its ``own``, then those that it shares with others.

    ``meshes``: by the identity of each in what is shared, what it is in this file.
    """

    own: dict[Any, Any]
    shared: dict[Any, Any] = field(default_factory=dict)
    meshes: Mapping[int, StandIn] = field(default_factory=dict)

    @property
    def state(self) -> dict[Any, Any]:
        """All items."""
        return self.own | self.shared


@dataclass
class Script:
    """A pickle that others may repeat."""

    data: bytes
    resolve: Resolve
    persistent: Callable[[Any], Any]
    _cuts: dict[int, _Cut | None] = field(default_factory=dict)

    def play(self) -> Replayed | None:
        """What the pickle itself holds; None where only the whole of it can say that."""
        return self._join(self.data, -1)

    def replay(self, data: bytes) -> Replayed | None:
        """What ``data`` holds, where it is this pickle but for its head; None where it is not."""
        end = _find_last_difference(self.data, data)
        return None if end is None else self._join(data, end)

    def _join(self, data: bytes, end: int) -> Replayed | None:
        """The head of ``data``, up to position ``end`` at least, with this pickle's tail."""
        try:
            theirs = run_head(data, self.resolve, self.persistent, end)
            if theirs is None:
                return None
            if theirs.position not in self._cuts:
                self._cuts[theirs.position] = None
                self._cuts[theirs.position] = self._cut(end, theirs.position)
            cut = self._cuts[theirs.position]
            return None if cut is None else cut.join(theirs)
        except (CkptError, *MALFORMED):
            return None  # what is wrong with it the whole of it says

    def _cut(self, end: int, position: int) -> _Cut | None:
        """The pickle cut at ``position``; None where its tail is not by itself."""
        mine, again = (run_head(self.data, self.resolve, self.persistent, end) for _ in range(2))
        if mine is None or again is None or mine.position != position:
            return None
        names = _list_names(mine)
        if names is None:
            return None
        memo = _Asked(mine.machine.memo)
        meshes = [each for each in mine.machine.memo.values() if _is_mesh(each)]
        before = [(mesh.args, mesh.state) for mesh in meshes]
        tail = Tail(self.data, mine, memo)
        if not tail.run_to_end() or not tail.state.keys().isdisjoint(names[:-1]):
            return None
        after = ((mesh.args, mesh.state) for mesh in meshes)
        kept = all(a is c and b is d for (a, b), (c, d) in zip(before, after, strict=True))
        if not kept or not _Pairs(mine, again).are_alike_at(memo.asked):
            return None  # the tail changes what it asked for
        outermost = mine.machine.marks[0][0]
        if any(mine.machine.memo[at] is outermost for at in memo.asked):
            return None
        return _Cut(mine, names, tail.state, memo.asked)


@dataclass(frozen=True)
class _Cut:
    """A pickle's head and the items of its tail.

    ``names``: those of the head; ``asked``: the head's memo, where it was read.
    """

    head: Head
    names: list[str]
    tail: dict[Any, Any]
    asked: set[int]

    def join(self, theirs: Head) -> Replayed | None:
        """What a pickle with that head and this tail holds; None where the tail is then another."""
        names = _list_names(theirs)
        if names != self.names:
            return None
        if self.head.machine.room != theirs.machine.room:
            return None  # for text, of which the tail's calls may have too much
        if not _Pairs(self.head, theirs).are_alike_at(self.asked):
            return None
        other = theirs.machine.memo
        meshes = {
            id(mesh): other[at]
            for at, mesh in self.head.machine.memo.items()
            if _is_mesh(mesh) and _is_mesh(other.get(at))
        }
        items = dict(zip(self.names, theirs.machine.stack[1::2], strict=False))
        return Replayed(items, self.tail, meshes)


class _Asked(dict[int, Any]):
    """The memo of a tail: ``asked`` collects what it has to look up in the head's."""

    def __init__(self, head: dict[int, Any]) -> None:
        super().__init__()
        self._head = dict(head)  # what the head has taken from it is known
        self.asked: set[int] = set()

    def __missing__(self, at: int) -> Any:
        found = self._head[at]
        self.asked.add(at)
        return found

    def __len__(self) -> int:
        raise KeyError("the next place in the memo")  # of pickles that count it themselves


def _find_last_difference(one: bytes, other: bytes) -> int | None:
    """The last position at which pickles differ, -1 where nowhere; None: beyond their heads."""
    if len(one) != len(other) or not one.endswith(other[_HEAD:]):
        return None
    pairs = zip(one[:_HEAD], other[:_HEAD], strict=True)
    return max((at for at, (a, b) in enumerate(pairs) if a != b), default=-1)


def _list_names(head: Head) -> list[str] | None:
    """The items' names and the one that follows; None where they are not items of one new dict.

    It is asked for by nothing in the head, so that no item has it.
    """
    machine = head.machine
    below, names = machine.marks[0], machine.stack[::2]
    if len(below) != 1 or type(below[0]) is not dict or below[0] or head.refers_to(below[0]):
        return None
    if not all(type(name) is str for name in names) or len(set(names)) < len(names):
        return None
    return names


def _is_mesh(value: Any) -> bool:
    return isinstance(value, StandIn) and value.kind == _MESH


class _Pairs:
    """Compares objects of two heads; meshes are alike where they have one place in the memo."""

    def __init__(self, one: Head, other: Head) -> None:
        self._memos = one.machine.memo, other.machine.memo
        self._places = [
            {id(value): at for at, value in memo.items() if _is_mesh(value)} for memo in self._memos
        ]
        self._seen: set[tuple[int, int]] = set()
        self._room = _ROOM

    def are_alike_at(self, places: set[int]) -> bool:
        """Whether memos hold what nothing tells apart; False too where it is too much of it."""
        if not places <= self._memos[0].keys() & self._memos[1].keys():
            return False
        waiting = [(self._memos[0][at], self._memos[1][at]) for at in places]
        while waiting:
            pair = waiting.pop()
            if (id(pair[0]), id(pair[1])) in self._seen:
                continue
            self._seen.add((id(pair[0]), id(pair[1])))
            self._room -= 1 + sum(_weigh(each) for each in pair)
            if self._room < 0 or not self._agree(*pair):
                return False
            waiting += _open(*pair)
        return True

    def _agree(self, ours: Any, their: Any) -> bool:
        """Whether two objects are alike but for what they consist of."""
        if type(ours) is not type(their):
            return False
        if isinstance(ours, _ATOMS):
            return bool(ours == their)
        if _is_mesh(ours) or _is_mesh(their):
            place = self._places[0].get(id(ours))
            return place is not None and place == self._places[1].get(id(their))
        if isinstance(ours, (Builder, StandIn)):
            return (ours.qualname, ours.foreign) == (their.qualname, their.foreign)
        return isinstance(ours, (tuple, list, dict)) and len(ours) == len(their)


def _weigh(value: Any) -> int:
    sized = isinstance(value, (str, bytes, tuple, list, dict))
    return len(value) if sized else 0


def _open(ours: Any, their: Any) -> Iterator[tuple[Any, Any]]:
    """The pairs that two objects of one kind consist of; keys and values by turns."""
    if isinstance(ours, StandIn) and not _is_mesh(ours):
        yield ours.args, their.args
        yield ours.state, their.state
    elif isinstance(ours, dict):
        yield from zip(ours, their, strict=True)
        yield from zip(ours.values(), their.values(), strict=True)
    elif isinstance(ours, (tuple, list)):
        yield from zip(ours, their, strict=True)
