"""What becomes of the tensors of one row of torchtitan's names, in both directions.

All of it is geometry on lazy tensors: nothing is read. ``to_hub`` gives Hugging Face's tensors, and
``to_titan`` undoes it. Layouts: ``torchtitan/models/common/attention.py`` (``wqkv``: per key and
value head its query heads, then key, then value), ``models/common/moe.py`` (experts are
[experts, out, in]), and the adapters of llama3 (rotary rows), llama4 and gpt_oss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ckpt_tool.common.untrusted import Fields
from ckpt_tool.mapping.config import EXPERT_KEYS, ModelConfig
from ckpt_tool.mapping.megatron.ops import QueryGroups
from ckpt_tool.tensors.lazy import LazyTensor, cat, stack
from ckpt_tool.tensors.reshaped import reshape

Parts = Sequence[LazyTensor]


class TitanOp(Protocol):
    """An operation with an inverse; each raises ValueError for what does not fit."""

    def to_hub(self, parts: Parts) -> list[LazyTensor]:
        """What Hugging Face has, of torchtitan's tensors."""

    def to_titan(self, parts: Parts) -> list[LazyTensor]:
        """What torchtitan has, of Hugging Face's tensors."""


@dataclass(frozen=True)
class Same:
    """One tensor that is the same on both sides."""

    def to_hub(self, parts: Parts) -> list[LazyTensor]:
        return list(parts)

    def to_titan(self, parts: Parts) -> list[LazyTensor]:
        return list(parts)


@dataclass(frozen=True)
class Halve:
    """Rows of ``heads`` heads: pairs for the rotary embedding are neighbours, and become halves."""

    heads: int

    def to_hub(self, parts: Parts) -> list[LazyTensor]:
        return [self._turn(parts[0], lambda half: (half, 2))]

    def to_titan(self, parts: Parts) -> list[LazyTensor]:
        return [self._turn(parts[0], lambda half: (2, half))]

    def _turn(self, tensor: LazyTensor, pair: Callable[[int], tuple[int, int]]) -> LazyTensor:
        rows = tensor.shape[0] if tensor.shape else 0
        if not (rows and tensor.numel and self.heads) or rows % (2 * self.heads):
            raise ValueError(f"{list(tensor.shape)} is no whole rows for {self.heads} heads")
        split = (self.heads, *pair(rows // self.heads // 2), *tensor.shape[1:])
        return reshape(reshape(tensor, split).transpose(1, 2), tensor.shape)


@dataclass(frozen=True)
class SplitGroups:
    """Query, key and value, interleaved by key and value head; ``halve``: rotary rows as well."""

    groups: QueryGroups
    halve: bool

    def to_hub(self, parts: Parts) -> list[LazyTensor]:
        if self.groups.find_fault([(rows,) for rows in self.groups.rows]) or not parts[0].numel:
            raise ValueError(f"{list(parts[0].shape)} for {self._describe()}")
        query, key, value = self.groups.split([parts[0]])
        if self.halve:
            query, key = self._query.to_hub([query])[0], self._key.to_hub([key])[0]
        return [query, key, value]

    def to_titan(self, parts: Parts) -> list[LazyTensor]:
        query, key, value = parts
        if self.halve:
            query, key = self._query.to_titan([query])[0], self._key.to_titan([key])[0]
        fault = self.groups.find_fault([part.shape for part in parts])
        if fault:
            raise ValueError(fault)
        return [cat(self.groups.join([query, key, value])[0], 0)]

    @property
    def _query(self) -> Halve:
        return Halve(self.groups.heads)

    @property
    def _key(self) -> Halve:
        return Halve(self.groups.groups)

    def _describe(self) -> str:
        heads, groups, size = self.groups.heads, self.groups.groups, self.groups.head_dim
        return f"{heads} heads, {groups} key and value heads, head_dim {size}"


@dataclass(frozen=True)
class Experts:
    """A tensor of all experts, and one of each; ``count`` of them, where that is said."""

    count: int

    def to_hub(self, parts: Parts) -> list[LazyTensor]:
        _require_experts(parts, self.count)
        return [parts[0].select(0, number) for number in range(parts[0].shape[0])]

    def to_titan(self, parts: Parts) -> list[LazyTensor]:
        return [stack(parts)]


@dataclass(frozen=True)
class Transpose:
    """Experts [E, out, in], on the Hub [E, in, out]."""

    count: int

    def to_hub(self, parts: Parts) -> list[LazyTensor]:
        _require_experts(parts, self.count)
        return [parts[0].transpose(1, 2)]

    def to_titan(self, parts: Parts) -> list[LazyTensor]:
        return self.to_hub(parts)


@dataclass(frozen=True)
class JoinColumns:
    """Gate and up of experts, [E, out, in] each, on the Hub one tensor [E, in, gate and up]."""

    count: int

    def to_hub(self, parts: Parts) -> list[LazyTensor]:
        _require_experts(parts, self.count)
        if len({part.shape for part in parts}) > 1:
            shapes = " and ".join(str(list(part.shape)) for part in parts)
            raise ValueError(f"{shapes}, expected one shape for gate and up")
        return [cat([part.transpose(1, 2) for part in parts], 2)]

    def to_titan(self, parts: Parts) -> list[LazyTensor]:
        _require_experts(parts, self.count)
        half, odd = divmod(parts[0].shape[2], 2)
        if odd:
            raise ValueError(f"{list(parts[0].shape)}, expected as many columns of gate as of up")
        return [parts[0].narrow(2, at, half).transpose(1, 2) for at in (0, half)]


def _require_experts(parts: Parts, count: int) -> None:
    for part in parts:
        said = count or (part.shape[0] if part.shape else 0)
        if len(part.shape) != 3 or part.shape[0] != said or not part.numel:
            raise ValueError(f"{list(part.shape)}, expected [{count or 'experts'}, out, in]")


_STACKED: dict[str, type[Experts] | type[Transpose] | type[JoinColumns]] = {
    "experts": Experts,
    "transpose": Transpose,
    "join_columns": JoinColumns,
}


def make_op(kind: str, config: ModelConfig) -> TitanOp:
    """The operation that rows call ``kind``; FormatError where the config lacks its numbers."""
    text = Fields(config.text, config.path)
    if kind == "same":
        return Same()
    if kind in _STACKED:
        count = text.agreed_size(EXPERT_KEYS, 0)
        return _STACKED[kind](count)
    heads = text.size("num_attention_heads")
    groups = text.size("num_key_value_heads", heads)
    if kind in ("halve_query", "halve_key"):
        return Halve(heads if kind == "halve_query" else groups)
    head_dim = text.size("head_dim", text.size("hidden_size", 0) // max(heads, 1))
    return SplitGroups(QueryGroups(heads, groups, head_dim), kind == "split_halved")
