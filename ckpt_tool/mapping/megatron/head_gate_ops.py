"""Attention whose heads have a gate of one row each, which megatron-core has as many rows of.

On the Hub a head's gate is one row, by which all that the head gives is scaled. megatron-core
(``attention_output_gate``, 0.16 on) has a row for each element of a head, and Megatron-Bridge 0.6.2
gives all of them that one. Back it takes the first row of each head and leaves the others unseen:
here they have to be equal. Source: ``merge_qkvg_weights`` in ``conversion/param_mapping.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_tool.mapping.megatron.ops import Blocks, QueryGroups, weave
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor, cat
from ckpt_tool.tensors.repeated import repeat


@dataclass(frozen=True)
class HeadGates:
    """Query, key, value and gates: of a group the query heads, then their gates, then key, value.

    ``heads`` query heads share ``groups`` key and value heads; each head has ``head_dim`` rows, and
    so often is there the one row of its gate.
    """

    heads: int
    groups: int
    head_dim: int

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        """What is wrong with the shapes of query, key, value and gate."""
        *rest, gate = shapes
        fault = self._plain.find_fault(rest)
        if fault or gate == (self.heads, *rest[0][1:]):
            return fault
        return f"gate is {list(gate)}, expected {self.heads} rows (one for each head)"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        """The one tensor, whose rows of gates are repeated."""
        query, key, value, gate = tensors
        rows, head = self._rows_per_group, self.head_dim
        parts = query, repeat(gate, head), key, value
        return [weave(parts, (rows, rows, head, head), self.groups)]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        """Query, key, value, and the first row of each gate; ValueError where they do not fit."""
        (whole,) = wholes
        query, key, value = self._plain.with_gates.split([self._require_rows(whole)])
        gates = self._take(query, 1)
        firsts = [gates.narrow(0, head * self.head_dim, 1) for head in range(self.heads)]
        return [self._take(query, 0), key, value, cat(firsts, 0)]

    def find_gates(self, whole: LazyTensor) -> LazyTensor:
        """All rows of gates in Megatron's tensor, by head."""
        return self._take(self._plain.with_gates.split([whole])[0], 1)

    @property
    def _rows_per_group(self) -> int:
        return self.heads // self.groups * self.head_dim

    @property
    def _plain(self) -> QueryGroups:
        return QueryGroups(self.heads, self.groups, self.head_dim)

    def _take(self, query: LazyTensor, part: int) -> LazyTensor:
        """The query heads (0) or the gates (1) of all groups."""
        rows = self._rows_per_group
        starts = ((2 * group + part) * rows for group in range(self.groups))
        return cat([query.narrow(0, start, rows) for start in starts], 0)

    def _require_rows(self, whole: LazyTensor) -> LazyTensor:
        """ValueError for other rows, and for a gate of one row: no release has such attention."""
        rows = sum(self._plain.rows) + self.heads
        if whole.shape[:1] == (rows,) and self.head_dim > 1:
            raise ValueError(
                f"{list(whole.shape)}: one row of gate for each of {self.heads} heads, expected"
                f" {self.head_dim} (attention_output_gate). No released megatron-core has attention"
                " with the one, so that how ranks share them is not known"
            )
        return whole
