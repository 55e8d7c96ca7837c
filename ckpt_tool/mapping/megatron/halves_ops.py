"""What slime does to the rows of an indexer's heads: their halves change places.

On the Hub the first half of a head turns by position, in slime the second one. Source: ``wq_b``,
``wk`` and ``k_norm`` in ``megatron_to_hf/deepseekv3.py`` of slime 0.2, of heads of 128 rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_tool.mapping.megatron.ops import Blocks
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor, cat


@dataclass(frozen=True)
class HeadHalves:
    """The two halves of each head's rows exchanged: the same both ways.

    ``head``: the rows of one; ``turned``: how many of them turn by position.
    """

    head: int
    turned: int

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        """What is wrong with the one shape, or with the heads."""
        if not self.head or self.head != 2 * self.turned:
            return (
                f"heads of {self.head} rows (index_head_dim), of which {self.turned} turn"
                " (qk_rope_head_dim); slime exchanges halves, of which one turns"
            )
        fits = bool(shapes[0]) and shapes[0][0] % self.head == 0
        return "" if fits else f"{list(shapes[0])}, expected heads of {self.head} rows"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        """The one tensor with its halves exchanged."""
        (whole,) = tensors
        half = self.head // 2
        starts = range(0, whole.shape[0], self.head)
        halves = [at + offset for at in starts for offset in (half, 0)]
        return [[cat([whole.narrow(0, at, half) for at in halves], 0)]]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        """The same; ValueError where there are no such heads."""
        fault = self.find_fault([whole.shape for whole in wholes])
        if fault:
            raise ValueError(fault)
        return self.join(wholes)[0]
