"""One tensor of Hugging Face's against several of Megatron's: its rows, by given counts.

The inputs of a Mamba layer or of a gated DeltaNet are one projection on the Hub. In memory
megatron-core has one too, but its distributed checkpoints keep the parts apart, so that each can
be cut among ranks: ``sharded_state_dict`` in ``megatron/core/ssm/mamba_mixer.py`` and
``gated_delta_net``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_tool.mapping.megatron.ops import Blocks
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor, cat


@dataclass(frozen=True)
class RowsSplit:
    """One tensor, and its rows as a tensor for each of ``rows``, in order."""

    rows: tuple[int, ...]

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        """What is wrong with the one shape: it has not the rows of all parts."""
        if shapes[0][:1] == (sum(self.rows),) and all(self.rows):
            return ""
        parts = " + ".join(map(str, self.rows))
        return f"{list(shapes[0])}, expected {parts} = {sum(self.rows)} rows"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        """A tensor of Megatron's for each part."""
        starts = [sum(self.rows[:part]) for part in range(len(self.rows))]
        return [
            [tensors[0].narrow(0, start, count)]
            for start, count in zip(starts, self.rows, strict=True)
        ]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        """The one tensor that the parts are; ValueError where one has not its rows."""
        for whole, count in zip(wholes, self.rows, strict=True):
            if whole.shape != (count, *wholes[0].shape[1:]):
                found = ", ".join(str(list(one.shape)) for one in wholes)
                raise ValueError(f"{found}, expected {', '.join(map(str, self.rows))} rows")
        return [cat(wholes, 0)]
