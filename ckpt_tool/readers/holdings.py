"""A tensor as files describe it: which block of it which file holds, and where.

Of a large checkpoint hundreds of thousands of tensors are cut alike by hundreds of ranks. What
they have in common is kept once (:class:`Layout`); of each block there is its place in its file.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

from ckpt_tool.tensors.chunks import Chunk, Region
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Box, Shape
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.packed import Frame, Packed, PackedChunks


@dataclass(frozen=True, slots=True)
class Holding:
    """A block of a tensor that one file holds.

    ``rank``: whose file it is, None where files belong to no rank. ``box``: which block of the
    whole tensor, offsets and sizes in elements. ``region``: where its elements lie on disk.
    ``replicated``: the file itself says that other ranks hold the same block.
    """

    rank: int | None
    box: Box
    region: Region
    replicated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What the holdings of tensors that are cut alike have in common: ``holdings`` of one of them.

    ``picked``: which of them hold a block first, and some of it; ``frame``: of their chunks, in the
    same order. ``has_copies``: whether a block is held more than once.
    """

    holdings: tuple[Holding, ...]
    picked: tuple[int, ...] = field(init=False)
    frame: Frame = field(init=False)
    has_copies: bool = field(init=False)

    def __post_init__(self) -> None:
        first: dict[Box, int] = {}
        for number, holding in enumerate(self.holdings):
            first.setdefault(holding.box, number)
        picked = sorted((box.offsets, number) for box, number in first.items() if box.volume)
        object.__setattr__(self, "picked", tuple(number for _, number in picked))
        held = [self.holdings[number] for number in self.picked]
        object.__setattr__(self, "frame", Frame(tuple(Chunk(h.box, h.region) for h in held)))
        object.__setattr__(self, "has_copies", len(first) < len(self.holdings))


class PackedHoldings(Packed[Holding]):
    """Holdings as ``layout`` has them, each at its own offset in its file."""

    __slots__ = ("layout",)

    def __init__(self, layout: Layout, offsets: array[int]) -> None:
        self.layout = layout
        self.offsets = offsets

    def make(self, index: int) -> Holding:
        """The holding of this number."""
        like = self.layout.holdings[index]
        region = like.region._replace(offset=self.offsets[index])
        return Holding(like.rank, like.box, region, like.replicated)

    def chunks(self) -> PackedChunks:
        """One chunk per block that is not empty."""
        return PackedChunks(
            self.layout.frame, array("Q", [self.offsets[at] for at in self.layout.picked])
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor as the files describe it, before anything is proven about it.

    ``name``: its FQN; ``shape``: of the whole tensor, in elements; ``dtype``: on disk.
    ``placements``: how ranks share it, in words for people. ``holdings``: every block that a file
    holds, replicas among them, in the order of the files.
    """

    name: str
    shape: Shape
    dtype: DType
    placements: str
    holdings: Sequence[Holding]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize

    def owners(self) -> dict[Box, Holding]:
        """One holding per distinct block, the first of its replicas."""
        owners: dict[Box, Holding] = {}
        for holding in self.holdings:
            owners.setdefault(holding.box, holding)
        return owners

    def tensor(self) -> LazyTensor:
        """The lazy tensor over one holding per block."""
        if isinstance(self.holdings, PackedHoldings):
            return LazyTensor(self.shape, self.dtype, self.dtype, self.holdings.chunks())
        held = self.holdings if len(self.holdings) == 1 else self.owners().values()
        chunks = tuple([Chunk(h.box, h.region) for h in held if h.box.volume])
        return LazyTensor(self.shape, self.dtype, self.dtype, chunks)

    def replicas(self) -> Iterator[tuple[Holding, Holding]]:
        """Each holding of a block that another holding, the first of the pair, stands for."""
        if isinstance(self.holdings, PackedHoldings) and not self.holdings.layout.has_copies:
            return
        owners: dict[Box, Holding] = {}
        for holding in self.holdings:
            if holding.box not in owners:
                owners[holding.box] = holding
            elif holding.box.volume:
                yield owners[holding.box], holding
