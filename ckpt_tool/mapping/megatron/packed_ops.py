"""Experts that are one tensor on the Hub too: an axis of experts on both sides.

Megatron has [E, out, in] of ``linear_fc1`` (gate, then up) and ``linear_fc2``: ``experts.py`` of
megatron-core. Released Qwen3-VL-MoE and Llama 4 have [E, in, out]; Step-3.5 has gate and up by
themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_tool.mapping.megatron.ops import Blocks
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor, cat, stack
from ckpt_tool.tensors.rows import join_rows
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


@dataclass(frozen=True)
class PackedGateUp:
    """Gate and up of all experts of a layer, [E, I, in] each, and one after the other."""

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        gate, up = shapes
        if len(gate) == 3 and gate == up:
            return ""
        return f"gate is {list(gate)} and up {list(up)}, expected experts, and one shape"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        gate, up = tensors
        if gate.source_dtype == up.source_dtype:
            return [[cat(tensors, 1)]]
        pairs = ([part.select(0, expert) for part in tensors] for expert in range(gate.shape[0]))
        return [[stack([join_rows(pair) for pair in pairs])]]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        (whole,) = wholes
        if len(whole.shape) != 3 or whole.shape[1] % 2:
            raise ValueError(f"{list(whole.shape)}, expected experts, of gate and as much of up")
        half = whole.shape[1] // 2
        return [whole.narrow(1, 0, half), whole.narrow(1, half, half)]
