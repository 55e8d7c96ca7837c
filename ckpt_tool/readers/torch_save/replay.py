"""Pickles that repeat one another: what the second one holds, from the first one's objects.

The ranks of one run write the same pickle but for a few numbers near its beginning: where in its
mesh a rank is. So of a pickle that differs in its head alone only the head is run, up to where the
first items of the state dict are whole, and these are taken from there. What comes after is the
same bytes, and refers to the head through the memo alone. Each object that the memo has then must
be alike in both, or be a device mesh, which is handed out with what it is in the second, or be
nobody's but the first items'. That items and meshes were whole there shows in the first pickle: at
its end they are what they were.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ckpt_tool.common.errors import CkptError
from ckpt_tool.readers.torch_save.machine import Machine, Resolve
from ckpt_tool.readers.torch_save.names import StorageType
from ckpt_tool.readers.torch_save.rebuilding import StorageRef, TensorRef
from ckpt_tool.readers.torch_save.standins import Builder, StandIn
from ckpt_tool.readers.torch_save.unpickle import MALFORMED, run_head
from ckpt_tool.tensors.dtypes import DType

#: How far from the beginning pickles may differ, and how many pairs of objects are compared.
_HEAD = 1 << 14
_MOST_PAIRS = 1 << 14
_MESH = "DeviceMesh"

#: What is alike where it is equal.
_ATOMS = (
    *(str, bytes, int, float, bool, type(None), frozenset),
    *(DType, StorageType, StorageRef, TensorRef),
)


@dataclass(frozen=True)
class Replayed:
    """A state dict; ``meshes``: by the identity of each in it, what it is in this file."""

    state: dict[Any, Any]
    meshes: Mapping[int, StandIn]


@dataclass(frozen=True)
class Script:
    """A pickle that was run whole: its state dict, and the memo, both kept as they are."""

    data: bytes
    state: dict[Any, Any]
    memo: dict[int, Any]
    resolve: Resolve
    persistent: Callable[[Any], Any]

    def replay(self, data: bytes) -> Replayed | None:
        """What ``data`` holds, where it is this pickle but for its head; None where it is not."""
        end = _find_last_difference(self.data, data)
        if end is None:
            return None
        try:
            mine, theirs = (
                run_head(each, self.resolve, self.persistent, end) for each in (self.data, data)
            )
        except (CkptError, *MALFORMED):
            return None  # what is wrong with it the whole of it says
        if mine is None or theirs is None or mine.position != theirs.position:
            return None
        return self._pair(mine.machine, theirs.machine)

    def _pair(self, mine: Machine, theirs: Machine) -> Replayed | None:
        *names, following = theirs.stack[::2]
        if [*names, following] != mine.stack[::2] or not self._is_whole(mine, names):
            return None
        if mine.memo.keys() != theirs.memo.keys():
            return None
        pairs = _Pairs(_list_meshes(mine.memo), _list_meshes(theirs.memo))
        for at, ours in mine.memo.items():
            if not pairs.are_alike(ours, theirs.memo[at]) and not _is_private(self.memo, at):
                return None
        places = _list_meshes(mine.memo).values()
        if not all(_is_mesh(theirs.memo[at]) for at in places):
            return None
        meshes = {id(self.memo[at]): theirs.memo[at] for at in places}
        items = dict(zip(names, theirs.stack[1::2], strict=True))
        return Replayed(self.state | items, meshes)

    def _is_whole(self, mine: Machine, names: list[Any]) -> bool:
        """Whether all that there is after the head is what there is of it in the end."""
        if not mine.memo.keys() <= self.memo.keys():
            return False
        if not all(isinstance(name, str) and name in self.state for name in names):
            return False
        places = _list_meshes(mine.memo)
        in_the_end = {id(self.memo[at]): at for at in places.values()}
        pairs = _Pairs(places, in_the_end)
        values = zip(mine.stack[1::2], (self.state[name] for name in names), strict=True)
        meshes = ((mine.memo[at], self.memo[at]) for at in places.values())
        return all(pairs.are_alike(*each) for each in values) and all(
            _is_mesh(there) and pairs.are_alike((here.args, here.state), (there.args, there.state))
            for here, there in meshes
        )


def _find_last_difference(one: bytes, other: bytes) -> int | None:
    """The last position at which pickles differ, -1 where nowhere; None: beyond their heads."""
    if len(one) != len(other) or memoryview(one)[_HEAD:] != memoryview(other)[_HEAD:]:
        return None
    pairs = zip(one[:_HEAD], other[:_HEAD], strict=True)
    return max((at for at, (a, b) in enumerate(pairs) if a != b), default=-1)


def _is_mesh(value: Any) -> bool:
    return isinstance(value, StandIn) and value.kind == _MESH


def _list_meshes(memo: dict[int, Any]) -> dict[int, int]:
    """The place in the memo of each mesh, by its identity."""
    return {id(value): at for at, value in memo.items() if _is_mesh(value)}


def _is_private(memo: dict[int, Any], at: int) -> bool:
    """Whether nothing holds the object but the memo and one other: nothing refers to it later."""
    return sys.getrefcount(memo[at]) <= _PRIVATE


def _count_private() -> int:
    holder = [object()]
    memo: dict[int, Any] = {0: holder[0]}
    return sys.getrefcount(memo[0])


_PRIVATE = _count_private()


class _Pairs:
    """Compares objects of two runs; meshes are alike where they have one place in the memo."""

    def __init__(self, mine: dict[int, int], theirs: dict[int, int]) -> None:
        self._mine, self._theirs = mine, theirs
        self._room = _MOST_PAIRS

    def are_alike(self, one: Any, other: Any) -> bool:
        """Whether nothing tells them apart; False too where they are too many to compare."""
        waiting = [(one, other)]
        while waiting:
            self._room -= 1
            if self._room < 0:
                return False
            ours, their = waiting.pop()
            inside = self._open(ours, their)
            if inside is None:
                return False
            waiting += inside
        return True

    def _open(self, ours: Any, their: Any) -> list[tuple[Any, Any]] | None:
        """The pairs that two objects consist of; None where they differ."""
        inside: list[tuple[Any, Any]] = []
        if type(ours) is not type(their):
            return None
        if isinstance(ours, _ATOMS):
            same = bool(ours == their)
        elif _is_mesh(ours) or _is_mesh(their):
            place = self._mine.get(id(ours))
            same = place is not None and place == self._theirs.get(id(their))
        elif isinstance(ours, (Builder, StandIn)):
            same = (ours.qualname, ours.foreign) == (their.qualname, their.foreign)
            if isinstance(ours, StandIn):
                inside = [(ours.args, their.args), (ours.state, their.state)]
        elif isinstance(ours, dict):
            same = list(ours) == list(their)
            inside = list(zip(ours.values(), their.values(), strict=False))
        else:
            same = isinstance(ours, (tuple, list)) and len(ours) == len(their)
            inside = list(zip(ours, their, strict=False)) if same else []
        return inside if same else None
