"""Gate and up of experts that take turns, as GPT-OSS has them, against those of Megatron.

On the Hub a weight takes rows to columns, [experts, in, out], and a bias is [experts, out]. In
Megatron each expert is [out, in], all of gate before all of up.
Source: ``GptOssExperts`` of transformers, whose MXFP4 weights are the same once they are unpacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_tool.mapping.megatron.ops import Blocks
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor, cat
from ckpt_tool.tensors.reshaped import reshape
from ckpt_tool.tensors.turned import turn


@dataclass(frozen=True)
class Alternating:
    """Gate and up of experts in turns [E, ..., 2 I], and one after the other [E, 2 I, ...].

    ``...`` is the width of what they take, or nothing: a bias.
    """

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        fits = len(shapes[0]) in (2, 3) and shapes[0][-1] % 2 == 0
        return "" if fits else f"{list(shapes[0])}, expected experts, and as much of gate as of up"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        (whole,) = tensors
        if len(whole.shape) == 3:
            return [[turn(whole, "apart")]]
        pairs = reshape(whole, (whole.shape[0], whole.shape[1] // 2, 2))
        return [[cat([pairs.select(2, 0), pairs.select(2, 1)], 1)]]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        (whole,) = wholes
        if len(whole.shape) not in (2, 3) or whole.shape[1] % 2:
            raise ValueError(f"{list(whole.shape)}, expected rows of gate and as many of up")
        if len(whole.shape) == 3:
            return [turn(whole, "in turns")]
        halves = reshape(whole, (whole.shape[0], 2, whole.shape[1] // 2))
        return [reshape(halves.transpose(1, 2), whole.shape)]
