"""What becomes of the tensors of one row of a family's table, in both directions.

All of it is geometry on lazy tensors: nothing is read. ``join`` gives each of Megatron's tensors,
mostly one, as consecutive blocks along its first dimension; ``split`` undoes it. Layouts:
``megatron/core/transformer/attention.py`` (``linear_qkv``: per query group its query heads, then
key, then value) and ``megatron/core/transformer/mlp.py`` (``linear_fc1`` of a gated MLP: gate, then
up).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor, cat, make_zeros

#: Vocabularies are padded to a multiple of, at most, some hundred rows for each tensor rank.
_MOST_PADDING = 1 << 14

#: A Megatron tensor, in order along dimension 0.
Blocks = list[LazyTensor]


class Op(Protocol):
    """An operation with an inverse."""

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        """What is wrong with the shapes on Hugging Face's side; empty where nothing is."""

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        """Each of the Megatron tensors that are made of Hugging Face's."""

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        """The Hugging Face tensors in Megatron's; ValueError where these do not fit."""


@dataclass(frozen=True)
class Same:
    """One tensor that is the same on both sides."""

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        return ""

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        return [list(tensors)]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        return list(wholes)


@dataclass(frozen=True)
class Vocabulary:
    """A row per token; Megatron's tensor may have more rows, of zeros, up to ``padded``."""

    rows: int
    padded: int

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        if shapes[0][:1] == (self.rows,):
            return ""
        return f"{list(shapes[0])}, expected {self.rows} rows (vocab_size)"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        missing = self.padded - self.rows
        if not missing:
            return [list(tensors)]
        return [[*tensors, make_zeros((missing, *tensors[0].shape[1:]), tensors[0].dtype)]]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        (whole,) = wholes
        if not whole.shape or whole.shape[0] < self.rows:
            raise ValueError(f"{list(whole.shape)}, expected {self.rows} rows (vocab_size) or more")
        if whole.shape[0] - self.rows > _MOST_PADDING:
            raise ValueError(
                f"{list(whole.shape)}, expected {self.rows} rows (vocab_size): more than padding"
                " explains"
            )
        return [whole.narrow(0, 0, self.rows)]


@dataclass(frozen=True)
class GateUp:
    """Gate and up projection, one after the other."""

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        gate, up = shapes
        if gate and gate == up:
            return ""
        return f"gate is {list(gate)} and up {list(up)}, expected rows, and one shape"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        return [list(tensors)]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        (whole,) = wholes
        half, odd = divmod(whole.shape[0] if whole.shape else 1, 2)
        if odd:
            raise ValueError(f"{list(whole.shape)}, expected rows of gate and as many of up")
        return [whole.narrow(0, 0, half), whole.narrow(0, half, half)]


def weave(tensors: Sequence[LazyTensor], rows: Sequence[int], groups: int) -> Blocks:
    """Of each group its rows of each tensor, of which it has ``rows``; in one where that goes."""
    pieces = [
        tensor.narrow(0, group * count, count)
        for group in range(groups)
        for tensor, count in zip(tensors, rows, strict=True)
    ]
    one_kind = len({piece.source_dtype for piece in pieces}) == 1
    return [cat(pieces, 0)] if one_kind else pieces


@dataclass(frozen=True)
class QueryGroups:
    """Query, key and value rows, interleaved by query group.

    ``heads`` query heads share ``groups`` key and value heads; each head has ``head_dim`` rows,
    that of values ``value_dim`` where it is not 0.
    """

    heads: int
    groups: int
    head_dim: int
    value_dim: int = 0

    @property
    def rows(self) -> tuple[int, int, int]:
        """Rows of query, key and value."""
        value = self.groups * (self.value_dim or self.head_dim)
        return self.heads * self.head_dim, self.groups * self.head_dim, value

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        found = tuple(shape[0] if shape else 0 for shape in shapes)
        if not self.groups or self.heads % self.groups:
            return f"{self.heads} heads, expected a multiple of the {self.groups} query groups"
        if found == self.rows and len({shape[1:] for shape in shapes}) == 1:
            return ""
        return (
            f"query, key and value are {', '.join(str(list(shape)) for shape in shapes)}, expected"
            f" {', '.join(map(str, self.rows))} rows ({self.heads} heads, {self.groups} query"
            f" groups, head_dim {self.head_dim})"
        )

    @property
    def with_gates(self) -> QueryGroups:
        """The same where each query head has a gate of its size: one more query head."""
        return replace(self, heads=2 * self.heads)

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        return [weave(tensors, self._per_group(), self.groups)]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        (whole,) = wholes
        if whole.shape[:1] != (sum(self.rows),):
            raise ValueError(f"{list(whole.shape)}, expected {sum(self.rows)} rows")
        parts: list[list[LazyTensor]] = [[], [], []]
        at = 0
        for _ in range(self.groups):
            for part, rows in zip(parts, self._per_group(), strict=True):
                part.append(whole.narrow(0, at, rows))
                at += rows
        return [cat(part, 0) for part in parts]

    def _per_group(self) -> tuple[int, int, int]:
        query, key, value = self.rows
        return query // self.groups, key // self.groups, value // self.groups


@dataclass(frozen=True)
class StackedHeads:
    """One tensor of all query, all key and all value rows, against rows interleaved by group.

    ``groups``: how many heads keys and values have; 0: as many as queries.
    """

    heads: int
    groups: int = 0

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        rows = shapes[0][0] if shapes[0] else 0
        if rows and self.heads and rows % self._parts == 0:
            return ""
        heads = f"{self.heads} heads" + (f" and {self.groups} query groups" if self.groups else "")
        return f"{list(shapes[0])}, expected rows of query, key and value for {heads}"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        groups, at, parts = self._groups(tensors[0].shape[0]), 0, []
        for rows in groups.rows:
            parts.append(tensors[0].narrow(0, at, rows))
            at += rows
        return groups.join(parts)

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        (whole,) = wholes
        if self.find_fault([whole.shape]):
            raise ValueError(self.find_fault([whole.shape]))
        return [cat(self._groups(whole.shape[0]).split(wholes), 0)]

    @property
    def _parts(self) -> int:
        """Heads of query, key and value together."""
        return self.heads + 2 * (self.groups or self.heads)

    def _groups(self, rows: int) -> QueryGroups:
        return QueryGroups(self.heads, self.groups or self.heads, rows // self._parts)


@dataclass(frozen=True)
class OneRow:
    """A table of one row, and that row by itself."""

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        fits = len(shapes[0]) == 2 and shapes[0][0] == 1
        return "" if fits else f"{list(shapes[0])}, expected one row"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        return [[tensors[0].select(0, 0)]]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        (whole,) = wholes
        if len(whole.shape) != 1:
            raise ValueError(f"{list(whole.shape)}, expected one dimension")
        return [whole.unsqueeze(0)]


@dataclass(frozen=True)
class SwapHalves:
    """The two halves of the columns exchanged: the same both ways."""

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        even = len(shapes[0]) == 2 and shapes[0][1] % 2 == 0
        return "" if even else f"{list(shapes[0])}, expected an even number of columns"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        half = tensors[0].shape[1] // 2
        return [[cat([tensors[0].narrow(1, half, half), tensors[0].narrow(1, 0, half)], 1)]]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        (whole,) = wholes
        if self.find_fault([whole.shape]):
            raise ValueError(self.find_fault([whole.shape]))
        return self.join(wholes)[0]
