"""A file before it is written: every byte of it known, or known to be which tensor's."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ckpt_tool.tensors.lazy import LazyTensor

#: Whose tensors a file holds.
Role = Literal["weights", "adapter"]


@dataclass(frozen=True, slots=True)
class Seal:
    """Bytes behind a tensor, into which its CRC-32 is put, little-endian, at ``places``."""

    content: bytes
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to write: plain bytes and tensors, back to back, ``starts`` their positions.

    ``names`` are those of the tensors, in order. Every tensor starts at a multiple of its item
    size, so no block cuts an element. ``role``: whether the tensors are the model's, or those of
    an adapter beside it or by itself.
    """

    name: str
    names: tuple[str, ...]
    items: tuple[bytes | Seal | LazyTensor, ...]
    starts: Sequence[int]
    size: int
    role: Role = "weights"

    @property
    def tensors(self) -> tuple[LazyTensor, ...]:
        """The tensors, in order."""
        return tuple(item for item in self.items if isinstance(item, LazyTensor))

    def name_item(self, index: int) -> str:
        """The name of the tensor that is item ``index``."""
        return self.names[sum(isinstance(item, LazyTensor) for item in self.items[:index])]

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The items that meet bytes ``[start, stop)``: number, and the bytes where they do."""
        index = max(bisect_right(self.starts, start) - 1, 0)
        while index < len(self.items) and self.starts[index] < stop:
            end = self.starts[index + 1] if index + 1 < len(self.items) else self.size
            if end > start:
                yield index, max(self.starts[index], start), min(end, stop)
            index += 1
