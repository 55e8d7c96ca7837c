"""A matrix that is turned on one side: the projector of Gemma 3, on the Hub no linear layer.

Source: ``permute_dims`` in ``gemma_vl/gemma3_vl_bridge.py`` of Megatron-Bridge 0.6.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_tool.mapping.megatron.ops import Blocks
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor


@dataclass(frozen=True)
class Turned:
    """[in, out] on the Hub and [out, in] in Megatron: the same both ways."""

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        """What is wrong with the one shape: it is no matrix."""
        return "" if len(shapes[0]) == 2 else f"{list(shapes[0])}, expected two dimensions"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        """The matrix, turned."""
        return [[tensors[0].transpose(0, 1)]]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        """The matrix, turned back; ValueError where it is none."""
        (whole,) = wholes
        if self.find_fault([whole.shape]):
            raise ValueError(self.find_fault([whole.shape]))
        return [whole.transpose(0, 1)]
