"""A table with a row for each pool of experts, and those rows by themselves: ERNIE-4.5-VL's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_tool.mapping.megatron.ops import Blocks
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor, stack


@dataclass(frozen=True)
class RowEach:
    """[count, N] on the Hub, and ``count`` tensors [N] in Megatron."""

    count: int = 2

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        """What is wrong with the one shape: it has not these rows."""
        fits = len(shapes[0]) == 2 and shapes[0][0] == self.count
        return "" if fits else f"{list(shapes[0])}, expected {self.count} rows"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        """A tensor of Megatron's for each row."""
        return [[tensors[0].select(0, row)] for row in range(self.count)]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        """The one table; ValueError where its rows are no rows, or not alike."""
        if {len(whole.shape) for whole in wholes} != {1}:
            found = ", ".join(str(list(whole.shape)) for whole in wholes)
            raise ValueError(f"{found}, expected one dimension each")
        return [stack(wholes)]
