"""The chunks of tensors that are cut alike: what they have in common once, and offsets for each."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar, overload

from ckpt_tool.tensors.chunks import Chunk, OrderedChunks

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What chunks have in common with those of other tensors: all but the offsets of regions.

    ``chunks``: of one of the tensors, by ascending offsets of boxes.
    """

    chunks: tuple[Chunk, ...]
    starts: tuple[int, ...] = field(init=False)
    reach: int = field(init=False)

    def __post_init__(self) -> None:
        boxes = [chunk.box for chunk in self.chunks if chunk.box.offsets]
        object.__setattr__(self, "starts", tuple(box.offsets[0] for box in boxes))
        object.__setattr__(self, "reach", max((box.sizes[0] for box in boxes), default=0))


class Packed(Sequence[T]):
    """Items that are made when they are asked for: each has its own of ``offsets``, in bytes."""

    __slots__ = ("offsets",)

    offsets: array[int]

    @abstractmethod
    def make(self, index: int) -> T:
        """The item of this number, which there is; negative ones count from the end."""

    def __len__(self) -> int:
        return len(self.offsets)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...

    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        if isinstance(index, slice):
            return tuple(self.make(at) for at in range(len(self))[index])
        return self.make(index)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


class PackedChunks(Packed[Chunk], OrderedChunks):
    """Chunks as ``frame`` has them, each at its own offset in its file."""

    __slots__ = ("frame",)

    def __init__(self, frame: Frame, offsets: array[int]) -> None:
        self.frame = frame
        self.offsets = offsets

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each begins along the first dimension."""
        return self.frame.starts

    @property
    def reach(self) -> int:
        """The most rows that one has."""
        return self.frame.reach

    def make(self, index: int) -> Chunk:
        """The chunk of this number."""
        like = self.frame.chunks[index]
        return Chunk(like.box, like.region._replace(offset=self.offsets[index]))
