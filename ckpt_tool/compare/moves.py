"""Who moved what: how far two tensors each are from a third, their origin, and in which direction.

Differences and sums are taken in float64, block by block, of elements that are finite in all three.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ckpt_tool.common.parallel import Team
from ckpt_tool.common.threads import Threads
from ckpt_tool.compare.parts import multiply
from ckpt_tool.compare.values import Values, count_values, decode_into
from ckpt_tool.tensors.ahead import Read, flow_ahead, list_reads
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.equality import count_steps
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.sweep import find_step

_ELEMENTS = 1 << 17  # per step
_STEPS = 16  # per task


class Three(NamedTuple):
    """A tensor of the checkpoint, of the reference and of the origin; all have one shape."""

    name: str
    left: LazyTensor
    right: LazyTensor
    origin: LazyTensor


@dataclass
class Moves:
    """How far both sides of a tensor (or of several) are from the origin, and from each other.

    ``squares``: sums of squares of the origin, of what the checkpoint moved, of what the reference
    moved, and of the difference of both sides; ``product``: of the two moves. ``num_odd``:
    elements, of ``num_elements``, that are not finite in one of the three, and in no sum.
    """

    name: str
    num_elements: int = 0
    squares: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    product: float = 0.0
    num_odd: int = 0

    @property
    def checkpoint(self) -> float | None:
        """``|a - c| / |c|``; None where that is no number."""
        return self._relative(1)

    @property
    def reference(self) -> float | None:
        """``|b - c| / |c|``; None where that is no number."""
        return self._relative(2)

    @property
    def apart(self) -> float | None:
        """``|a - b| / |c|``; None where that is no number."""
        return self._relative(3)

    @property
    def cosine(self) -> float | None:
        """Of the two moves: 1 in one direction, -1 in opposite ones; None where one is none."""
        norms = math.sqrt(self.squares[1]) * math.sqrt(self.squares[2])
        if not norms or not math.isfinite(norms) or not math.isfinite(self.product):
            return None
        return max(-1.0, min(1.0, self.product / norms))

    @property
    def farthest(self) -> float:
        """The larger of both moves, for an order; infinite where one is no number."""
        moves = (self.checkpoint, self.reference)
        return max(math.inf if each is None else each for each in moves)

    def _relative(self, at: int) -> float | None:
        if not self.squares[at]:
            return 0.0
        found = math.sqrt(self.squares[at] / self.squares[0]) if self.squares[0] else math.inf
        return found if math.isfinite(found) else None

    def add(self, other: Moves) -> None:
        """Take in other elements."""
        self.num_elements += other.num_elements
        c, a, b, apart = (x + y for x, y in zip(self.squares, other.squares, strict=True))
        self.squares = (c, a, b, apart)
        self.product += other.product
        self.num_odd += other.num_odd


def can_be_moved(left: LazyTensor, right: LazyTensor, origin: LazyTensor) -> bool:
    """Whether the three have one shape, and are floating-point numbers."""
    three = (left, right, origin)
    return len({each.shape for each in three}) == 1 and all(each.dtype.is_float for each in three)


def find_moves(threes: Sequence[Three], team: Team) -> list[Moves]:
    """How far each moved, in the order of ``threes``, for which :func:`can_be_moved` holds.

    Every process of the team reads its share, and all learn of all. OSError and FormatError where
    a file cannot be read.
    """
    mine = [threes[at] for at in team.world.share([three.left.nbytes for three in threes])]
    team.progress.start("origin", sum(three.left.nbytes for three in mine))
    parts = team.world.everyone(lambda: _measure(mine, team.jobs, team.progress.advance))
    found = {moves.name: moves for part in parts for moves in part}
    return [found[three.name] for three in threes]


def _measure(threes: Sequence[Three], jobs: int, advance: Callable[[int], None]) -> list[Moves]:
    found = {three.name: Moves(three.name) for three in threes}
    local = threading.local()
    count = sum(-(-three.left.numel // _span(three)) for three in threes)
    with FileTable() as files, Threads(jobs, tasks=count) as pool:

        def work(task: tuple[Three, int, int]) -> list[Moves]:
            if not hasattr(local, "blocks"):
                local.blocks = _Blocks(files)
            three, start, stop = task
            step = find_step(three.left.shape, _ELEMENTS)
            with np.errstate(all="ignore"):  # float64 may overflow
                parts = [
                    local.blocks.measure(three, at, min(at + step, stop))
                    for at in range(start, stop, step)
                ]
            advance((stop - start) * three.left.dtype.itemsize)
            return parts

        for parts in flow_ahead(pool, work, _cut(threes), _list_reads):
            for moves in parts:  # one by one: sums are the same then, however tasks are cut
                found[moves.name].add(moves)
    return list(found.values())


def _cut(threes: Sequence[Three]) -> Iterator[tuple[Three, int, int]]:
    """Ranges of elements, from one to before another, that threads take one by one."""
    for three in threes:
        for start in range(0, three.left.numel, _span(three)):
            yield three, start, min(start + _span(three), three.left.numel)


def _list_reads(task: tuple[Three, int, int]) -> Iterator[Read]:
    three, start, stop = task
    for side in (three.left, three.right, three.origin):
        yield from list_reads(side, start, stop)


def _span(three: Three) -> int:
    return count_steps(_STEPS) * find_step(three.left.shape, _ELEMENTS)


class _Blocks:
    """Measures blocks in memory that serves the next one, too; one instance per thread."""

    def __init__(self, files: FileTable) -> None:
        self._reader = BlockReader(files)
        self._kept: dict[tuple[str, str], NDArray[Any]] = {}

    def measure(self, three: Three, start: int, stop: int) -> Moves:
        """All numbers of elements ``[start, stop)``; raises what reading does."""
        a = self._read("a", three.left, start, stop)
        b = self._read("b", three.right, start, stop)
        c = self._read("c", three.origin, start, stop)
        np.subtract(a, c, out=a)
        np.subtract(b, c, out=b)
        squares, odd = self._add_up(a, b, c), 0
        if not all(map(math.isfinite, squares)):
            finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
            odd = int(np.count_nonzero(~finite))
            a[~finite] = b[~finite] = c[~finite] = 0.0
            squares = self._add_up(a, b, c)
        return Moves(three.name, stop - start, squares, multiply(a, b), odd)

    def _add_up(self, a: Values, b: Values, c: Values) -> tuple[float, float, float, float]:
        apart = np.subtract(a, b, out=self._take("apart", len(a), "f8"))
        return multiply(c, c), multiply(a, a), multiply(b, b), multiply(apart, apart)

    def _read(self, side: str, tensor: LazyTensor, start: int, stop: int) -> Values:
        raw = self._take("raw", (stop - start) * tensor.dtype.itemsize, "u1").data
        self._reader.read(tensor, start, stop, raw)
        count = count_values(len(raw), tensor.dtype)
        words = self._take("words", count, "u4")
        return decode_into(raw, tensor.dtype, self._take(side, count, "f8"), words)

    def _take(self, name: str, count: int, kind: str) -> NDArray[Any]:
        found = self._kept.get((name, kind))
        if found is None or len(found) < count:
            found = self._kept[name, kind] = np.empty(count, kind)
        return found[:count]
