"""A tensor that is no weight: numbers of experts, the same on both sides, never cast."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tool.mapping.megatron.ops import Same


@dataclass(frozen=True)
class Integers(Same):
    """A table of whole numbers, whatever the dtype of the weights is."""
