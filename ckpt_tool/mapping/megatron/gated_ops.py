"""What becomes of gated attention and of gated DeltaNet: rows by head, and norms that count from 0.

Sources: ``megatron/core/transformer/attention.py`` (``split_qkv`` with an output gate) and
``megatron/core/ssm/gated_delta_net`` of 0.19; ``modeling_qwen3_next.py`` of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ckpt_tool.mapping.megatron.numbers import Numbers
from ckpt_tool.mapping.megatron.ops import Blocks, Op, QueryGroups, Same, SwapHalves
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor, cat
from ckpt_tool.tensors.offsets import add


@dataclass(frozen=True)
class HeadRows:
    """Rows of one tensor, which belong to several of Megatron's.

    Of each of ``heads``, one after the other, it has ``rows`` of the first, then of the second, and
    so on. With one head these are the tensors themselves, one after the other.
    """

    rows: tuple[int, ...]
    heads: int = 1

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        wanted = self.heads * sum(self.rows)
        fits = shapes[0][:1] == (wanted,)
        return "" if fits else f"{list(shapes[0])}, expected {self._describe()}"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        (whole,) = tensors
        parts: list[list[LazyTensor]] = [[] for _ in self.rows]
        at = 0
        for _ in range(self.heads):
            for part, rows in zip(parts, self.rows, strict=True):
                part.append(whole.narrow(0, at, rows))
                at += rows
        return [[cat(part, 0)] for part in parts]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        for whole, rows in zip(wholes, self.rows, strict=True):
            if whole.shape[:1] != (self.heads * rows,):
                raise ValueError(f"{list(whole.shape)}, expected {self.heads * rows} rows")
        pieces = [
            whole.narrow(0, head * rows, rows)
            for head in range(self.heads)
            for whole, rows in zip(wholes, self.rows, strict=True)
        ]
        return [cat(pieces, 0)]

    def _describe(self) -> str:
        rows = f"{' + '.join(map(str, self.rows))} rows"
        return rows if self.heads == 1 else f"{self.heads} times {rows}, those of each key head"


@dataclass(frozen=True)
class WovenRows:
    """Rows of several tensors, which are those of each key head together in one of ms-swift's.

    ``parts``: how each tensor has them. ``heads``: how many key heads there are.
    """

    parts: tuple[HeadRows, ...]
    heads: int

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        for part, shape in zip(self.parts, shapes, strict=True):
            if part.find_fault([shape]):
                return part.find_fault([shape])
        return ""

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        found = []
        for part, tensor in zip(self.parts, tensors, strict=True):
            found += [rows for (rows,) in part.join([tensor])]
        return [self._whole.split(found)]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        fault = self._whole.find_fault([wholes[0].shape])
        if fault:
            raise ValueError(fault)
        rows = iter(self._whole.join(wholes))
        return [part.split([next(rows)[0] for _ in part.rows])[0] for part in self.parts]

    @property
    def _whole(self) -> HeadRows:
        rows = (count * part.heads // self.heads for part in self.parts for count in part.rows)
        return HeadRows(tuple(rows), self.heads)


@dataclass(frozen=True)
class GatedQueryGroups:
    """Query, key and value rows by query group, where each query head has a gate of its size.

    Hugging Face's query has the rows of a head and then those of its gate. In a group of Megatron
    all query heads come first, then all gates, then key and value; in one of ms-swift
    (``by_head``) they are as in Hugging Face's.
    """

    heads: int
    groups: int
    head_dim: int
    by_head: bool = False

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        query, key, value = shapes
        if not query or query[0] != 2 * self.heads * self.head_dim:
            rows = f"2 x {self.heads * self.head_dim} rows (each of {self.heads} heads has a gate)"
            return f"query is {list(query)}, expected {rows}"
        return self._plain.find_fault([(query[0] // 2, *query[1:]), key, value])

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        query, key, value = tensors
        return self._plain.with_gates.join([self._order(query, back=False), key, value])

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        query, key, value = self._plain.with_gates.split(wholes)
        return [self._order(query, back=True), key, value]

    @property
    def _plain(self) -> QueryGroups:
        return QueryGroups(self.heads, self.groups, self.head_dim)

    def _order(self, query: LazyTensor, *, back: bool) -> LazyTensor:
        """The heads and gates of each group one after the other, or by turns (``back``)."""
        if self.by_head:
            return query
        count = self.heads // self.groups
        order = [i % count * 2 + i // count for i in range(2 * count)]
        if back:
            order = [order.index(i) for i in range(2 * count)]
        size = self.head_dim
        return cat(
            [
                query.narrow(0, (group * 2 * count + i) * size, size)
                for group in range(self.groups)
                for i in order
            ],
            0,
        )


@dataclass(frozen=True)
class CountedFromZero:
    """A norm that counts from one, and is stored in Megatron as what it is more than one."""

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        return "" if len(shapes[0]) == 1 else f"{list(shapes[0])}, expected one dimension"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        return [[add(tensors[0], -1.0)]]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        return [add(wholes[0], 1.0)]


_QKV = ("linear_key", "linear_key", "linear_value")


def _take_rows(numbers: Numbers, *words: str) -> HeadRows:
    """Those of all heads together."""
    return HeadRows(tuple(numbers.sizes[word] for word in words))


def _take_head_rows(numbers: Numbers, *words: str) -> HeadRows:
    """Those of each key head, with the value heads that it is for."""
    heads = numbers.sizes["linear_key_heads"]
    return HeadRows(tuple(numbers.sizes[word] // heads for word in words), heads)


def _weave(numbers: Numbers, *parts: HeadRows) -> WovenRows:
    return WovenRows(parts, numbers.sizes["linear_key_heads"])


def _weave_gates(numbers: Numbers) -> WovenRows:
    return _weave(numbers, *[_take_rows(numbers, "linear_heads") for _ in "ba"])


def _weave_rows(numbers: Numbers) -> WovenRows:
    return _weave(numbers, _take_rows(numbers, *_QKV), _take_rows(numbers, "linear_value"))


def _weave_all(numbers: Numbers) -> WovenRows:
    return _weave(numbers, *_weave_rows(numbers).parts, *_weave_gates(numbers).parts)


def _weave_head_rows(numbers: Numbers) -> WovenRows:
    rows = _take_head_rows(numbers, *_QKV, "linear_value")
    return _weave(numbers, rows, _take_head_rows(numbers, *["linear_heads"] * 2))


GATED_OPS: dict[str, Callable[[Numbers], Op]] = {
    "gated_qkv": lambda numbers: GatedQueryGroups(
        numbers.heads, numbers.groups, numbers.head_dim, "by_head" in numbers.flags
    ),
    "fc": lambda numbers: SwapHalves() if "slime" in numbers.flags else Same(),
    "from_zero": lambda _: CountedFromZero(),
    "qkvz_rows": lambda numbers: _take_head_rows(numbers, *_QKV, "linear_value"),
    "ba_rows": lambda numbers: _take_head_rows(numbers, *["linear_heads"] * 2),
    "woven_qkv": lambda numbers: _weave(numbers, _take_rows(numbers, *_QKV)),
    "woven_qkvz": _weave_rows,
    "woven_ba": _weave_gates,
    "woven_apart": _weave_all,
    "woven_by_head": _weave_head_rows,
}
