"""What a row says in words, in the numbers of one model: names, shapes, and the operation."""

from __future__ import annotations

import re
from collections.abc import Callable

from ckpt_tool.mapping.families.megatron_form import Row
from ckpt_tool.mapping.megatron.alternating_ops import Alternating
from ckpt_tool.mapping.megatron.gated_ops import GATED_OPS
from ckpt_tool.mapping.megatron.head_gate_ops import HeadGates
from ckpt_tool.mapping.megatron.integer_ops import Integers
from ckpt_tool.mapping.megatron.numbers import Numbers
from ckpt_tool.mapping.megatron.ops import (
    GateUp,
    OneRow,
    Op,
    QueryGroups,
    Same,
    StackedHeads,
    SwapHalves,
    Vocabulary,
)
from ckpt_tool.mapping.megatron.packed_ops import Packed, PackedGateUp
from ckpt_tool.mapping.megatron.pools_ops import RowEach
from ckpt_tool.mapping.megatron.shared_kv_ops import SHARED_KV_OPS
from ckpt_tool.mapping.megatron.split_ops import RowsSplit
from ckpt_tool.mapping.megatron.turned_ops import Turned

#: The shape of a tensor; None: a size that the config does not say.
Sizes = tuple[int | None, ...]


def _make_wide(numbers: Numbers, groups: int) -> Op:
    """Heads whose values are not as wide as their keys."""
    value = numbers.sizes.get("value_head", 0)
    return QueryGroups(numbers.heads, groups, numbers.head_dim, value)


def _make_sliding(numbers: Numbers) -> Op:
    """Those of layers with a window, which have heads of another number."""
    words = ("sliding_heads", "sliding_groups", "sliding_head")
    return HeadGates(*(numbers.sizes.get(word, 0) for word in words))


_OPS: dict[str, Callable[[Numbers], Op]] = {
    "same": lambda _: Same(),
    "gate_up": lambda _: GateUp(),
    "swap_halves": lambda _: SwapHalves(),
    "one_row": lambda _: OneRow(),
    "row_each": lambda _: RowEach(),
    "turned": lambda _: Turned(),
    "packed": lambda _: Packed(),
    "packed_gate_up": lambda _: PackedGateUp(),
    "packed_turned": lambda _: Packed(transpose=True),
    "qkv": lambda numbers: QueryGroups(numbers.heads, numbers.groups, numbers.head_dim),
    "wide_qkv": lambda numbers: _make_wide(numbers, numbers.groups),
    "sliding_qkv": lambda numbers: _make_wide(numbers, numbers.sizes.get("swa_groups", 0)),
    "head_gates": lambda numbers: HeadGates(numbers.heads, numbers.groups, numbers.head_dim),
    "sliding_head_gates": _make_sliding,
    "stacked_qkv": lambda numbers: StackedHeads(numbers.vision_heads, numbers.vision_groups),
    "grouped_qkv": lambda numbers: StackedHeads(numbers.heads, numbers.groups),
    "alike_qkv": lambda numbers: StackedHeads(numbers.heads),
    "integers": lambda _: Integers(),
    "alternating": lambda _: Alternating(),
    "vocabulary": lambda numbers: Vocabulary(numbers.vocab_size, numbers.padded_vocab_size),
    **GATED_OPS,
    **SHARED_KV_OPS,
}


def make_op(row: Row, numbers: Numbers) -> Op:
    """The operation that a row names; the parts of ``rows`` are those that ``whole`` says."""
    if row.op == "rows":
        parts = (shape.split(",")[0] for shape in row.whole.split())
        return RowsSplit(tuple(numbers.sizes.get(rows, 0) for rows in parts))
    return _OPS[row.op](numbers)


def read_shapes(words: str, count: int, numbers: Numbers) -> tuple[Sizes, ...]:
    """The shapes of ``count`` tensors, of which all may have one; none where nothing is said."""
    said = [tuple(map(numbers.sizes.get, shape.split(","))) for shape in words.split()]
    return tuple(said * count if len(said) == 1 else said)


def expand(text: str) -> list[str]:
    """``a.{b,c}.d`` -> ``a.b.d``, ``a.c.d``; a brace without a comma stays."""
    matched = re.search(r"\{(\w+(?:,\w+)+)\}", text)
    if matched is None:
        return [text]
    return [text.replace(matched[0], choice) for choice in matched[1].split(",")]
