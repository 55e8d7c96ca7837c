"""What becomes of queries whose keys or values are those of something else, as in Gemma 4.

Megatron-Bridge's attention has rows of query, key and value in every layer. Where the Hub has no
values, since they are the keys, it has these twice; where it has neither, since a layer takes those
of an earlier one, it has zeros, and ones for the norm of keys. Its model never reads such rows, so
that training leaves them behind: they are left out. Sources: ``gemma4_bridge.py`` and
``modeling_gemma4.py`` of Megatron-Bridge 0.6.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from ckpt_tool.mapping.megatron.gated_ops import HeadRows
from ckpt_tool.mapping.megatron.numbers import Numbers
from ckpt_tool.mapping.megatron.ops import Blocks, Op, QueryGroups
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor, make_zeros
from ckpt_tool.tensors.ones import make_ones


@dataclass(frozen=True)
class KeysAsValues:
    """Query and key rows by query group; in Megatron each group ends with its key once more."""

    groups: QueryGroups

    #: What of Megatron's no model reads, and why.
    UNREAD: ClassVar[tuple[str, str]] = (
        "rows of values",
        "Megatron's model takes keys for values (attention_k_eq_v), and reads no others",
    )

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        query, key = shapes
        return self.groups.find_fault([query, key, key])

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        query, key = tensors
        return self.groups.join([query, key, key])

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        query, key, _ = self.groups.split(wholes)
        return [query, key]


@dataclass(frozen=True)
class KeysOnce:
    """The same rows, as ms-swift has them: each group has its key once."""

    groups: QueryGroups

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        return KeysAsValues(self.groups).find_fault(shapes)

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        return [self._rows.split(tensors)]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        if self._rows.find_fault([wholes[0].shape]):
            raise ValueError(self._rows.find_fault([wholes[0].shape]))
        return [part for (part,) in self._rows.join(wholes)]

    @property
    def _rows(self) -> HeadRows:
        query, key, _ = self.groups.rows
        count = self.groups.groups
        return HeadRows((query // count, key // count), count)


@dataclass(frozen=True)
class QueriesAlone:
    """Query rows by query group; in Megatron each group ends with zeros for key and value."""

    groups: QueryGroups

    UNREAD: ClassVar[tuple[str, str]] = (
        "rows of keys and values of layers that share them",
        "Megatron's model takes those of an earlier layer (num_kv_shared_layers)",
    )

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        query = shapes[0]
        key = (self.groups.rows[1], *query[1:])
        return self.groups.find_fault([query, key, key])

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        query = tensors[0]
        shape = (self.groups.rows[1], *query.shape[1:])
        zeros = replace(make_zeros(shape, query.source_dtype), dtype=query.dtype)
        return self.groups.join([query, zeros, zeros])

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        return self.groups.split(wholes)[:1]


@dataclass(frozen=True)
class QueryNorm:
    """The norm of queries; in Megatron there is one of keys beside it, of ones."""

    UNREAD: ClassVar[tuple[str, str]] = (
        "of layers that share keys",
        "Megatron's model takes those of an earlier layer, normed there (num_kv_shared_layers)",
    )

    def find_fault(self, shapes: Sequence[Shape]) -> str:
        return "" if len(shapes[0]) == 1 else f"{list(shapes[0])}, expected one dimension"

    def join(self, tensors: Sequence[LazyTensor]) -> list[Blocks]:
        query = tensors[0]
        ones = make_ones(query.shape, query.source_dtype)
        return [[query], [replace(ones, dtype=query.dtype)]]

    def split(self, wholes: Sequence[LazyTensor]) -> list[LazyTensor]:
        query, key = wholes
        if query.shape != key.shape:
            raise ValueError(f"{list(query.shape)} and {list(key.shape)}, expected one shape")
        return [query]


#: Those that leave something of Megatron's out.
Unread = KeysAsValues | QueriesAlone | QueryNorm


def _group(numbers: Numbers) -> QueryGroups:
    return QueryGroups(numbers.heads, numbers.groups, numbers.head_dim)


SHARED_KV_OPS: dict[str, Callable[[Numbers], Op]] = {
    "keys_as_values": lambda numbers: KeysAsValues(_group(numbers)),
    "queries_alone": lambda numbers: QueriesAlone(_group(numbers)),
    "query_norm": lambda _: QueryNorm(),
}
