"""Experts that are one tensor on the Hub too: an axis of experts on both sides.

Megatron has [E, out, in] of ``linear_fc1`` (gate, then up) and ``linear_fc2``: ``experts.py`` of
megatron-core. Released Qwen3-VL-MoE and Llama 4 have [E, in, out].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_tool.mapping.megatron.ops import Blocks
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.turned import turn


@dataclass(frozen=True)
class Packed:
    """All experts of a layer in one tensor; with ``transpose`` each turned on the Hub."""

    transpose: bool = False

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        return "" if len(shapes[0]) == 3 else f"{list(shapes[0])}, expected experts in one tensor"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        return [[self._turn(tensors[0])]]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        (whole,) = wholes
        if self.find_fault([whole.shape]):
            raise ValueError(self.find_fault([whole.shape]))
        return [self._turn(whole)]

    def _turn(self, tensor: LazyTensor) -> LazyTensor:
        return turn(tensor) if self.transpose else tensor
