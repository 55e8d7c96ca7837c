"""Rows of gated attention and gated DeltaNet: by hand, and that one direction undoes the other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.mapping.megatron.gated_ops import (
    GATED_OPS,
    CountedFromZero,
    GatedQueryGroups,
    HeadRows,
    WovenRows,
)
from ckpt_tool.mapping.megatron.ops import Op, QueryGroups
from ckpt_tool.tensors.lazy import cat
from tests.mapping.megatron import test_ops
from tests.mapping.megatron.test_ops import lazy, numbered
from tests.support.backed import same
from tests.support.megatron_models import rules_of

folder = test_ops.folder  # the fixture
few = st.integers(1, 3)
columns = st.lists(st.integers(1, 3), max_size=2)


def join(folder, op: Op, tensors) -> list[torch.Tensor]:
    assert op.find_fault([tuple(tensor.shape) for tensor in tensors]) == ""
    wholes = op.join([lazy(folder, tensor) for tensor in tensors])
    return [torch.cat([block.read() for block in blocks]) for blocks in wholes]


def letters(folder, op: Op, *rows: str) -> list[str]:
    """The rows of each Megatron tensor, where each row of a Hugging Face tensor is a letter."""
    tensors = [torch.tensor([ord(letter) for letter in part]) for part in rows]
    return ["".join(map(chr, whole.tolist())) for whole in join(folder, op, tensors)]


def is_undone(folder, op: Op, tensors) -> bool:
    found = op.split([lazy(folder, whole) for whole in join(folder, op, tensors)])
    lazily = op.split([cat(blocks, 0) for blocks in op.join([lazy(folder, t) for t in tensors])])
    return all(
        same(part.read(), tensor) and same(again.read(), tensor)
        for part, again, tensor in zip(found, lazily, tensors, strict=True)
    )


def test_rows_one_after_the_other(folder):
    assert letters(folder, HeadRows((2, 1, 3)), "abcdef") == ["ab", "c", "def"]


def test_rows_of_each_key_head(folder):
    assert letters(folder, HeadRows((1, 2), 3), "aKLbMNcOP") == ["abc", "KLMNOP"]


def test_gates_come_after_the_query_heads_of_their_group(folder):
    op = GatedQueryGroups(4, 2, 1)
    assert letters(folder, op, "aAbBcCdD", "KL", "VW") == ["abABKVcdCDLW"]
    op = GatedQueryGroups(2, 1, 2)
    assert letters(folder, op, "abABcdCD", "KL", "VW") == ["abcdABCDKLVW"]


def test_ms_swift_leaves_each_gate_after_its_head(folder):
    op = GatedQueryGroups(4, 2, 1, by_head=True)
    assert letters(folder, op, "aAbBcCdD", "KL", "VW") == ["aAbBKVcCdDLW"]


def test_rows_of_several_tensors_by_key_head(folder):
    op = WovenRows((HeadRows((2, 4)), HeadRows((1, 1), 2)), 2)
    assert letters(folder, op, "abCDEF", "xyXY") == ["aCDxybEFXY"]


@pytest.mark.slow
@given(st.tuples(few, few, few), columns, st.booleans())
def test_gated_queries_are_those_of_torch(folder, sizes, rest, by_head):
    groups, per_group, size = sizes
    heads, kv = groups * per_group, groups * size
    query, key, value = numbered([2 * heads * size, *rest], [kv, *rest], [kv, *rest])
    parts = query.view(groups, per_group, 2, size, *rest)
    ordered = parts if by_head else parts.transpose(1, 2)
    expected = torch.cat(
        [
            ordered.reshape(groups, 2 * per_group * size, *rest),
            *(part.view(groups, size, *rest) for part in (key, value)),
        ],
        1,
    ).flatten(0, 1)
    op = GatedQueryGroups(heads, groups, size, by_head)
    (found,) = join(folder, op, [query, key, value])
    assert same(found, expected)
    assert is_undone(folder, op, [query, key, value])


@pytest.mark.slow
@given(few, st.lists(few, min_size=1, max_size=4), columns)
def test_rows_of_heads_are_those_of_torch(folder, heads, rows, rest):
    (tensor,) = numbered([heads * sum(rows), *rest])
    op = HeadRows(tuple(rows), heads)
    parts = tensor.view(heads, sum(rows), *rest).split(rows, 1)
    for found, part in zip(join(folder, op, [tensor]), parts, strict=True):
        assert same(found, part.flatten(0, 1))
    assert is_undone(folder, op, [tensor])


@pytest.mark.slow
@given(few, st.lists(st.tuples(st.booleans(), st.lists(few, min_size=1, max_size=3)), min_size=1))
def test_woven_rows_are_undone(folder, heads, described):
    parts = tuple(
        HeadRows(tuple(rows), heads) if by_head else HeadRows(tuple(heads * n for n in rows))
        for by_head, rows in described
    )
    tensors = numbered(*([heads * sum(rows), 2] for _, rows in described))
    op = WovenRows(parts, heads)
    (whole,) = join(folder, op, tensors)
    assert len(whole) == sum(map(len, tensors))
    assert is_undone(folder, op, tensors)


def test_a_norm_is_stored_as_what_it_is_more_than_one(folder):
    tensor = torch.tensor([0.5, 1.0, 1.25, 3.0], dtype=torch.bfloat16)
    (found,) = join(folder, CountedFromZero(), [tensor])
    assert same(found, tensor - 1)
    assert is_undone(folder, CountedFromZero(), [tensor])


FAULTS = {
    "rows": (HeadRows((2, 1)), [(4, 5)], "expected 2 + 1 rows"),
    "rows of heads": (HeadRows((2, 1), 2), [(4, 5)], "2 times 2 + 1 rows, those of each key head"),
    "no gates": (GatedQueryGroups(4, 2, 3), [(12, 5), (6, 5), (6, 5)], "2 x 12 rows"),
    "another key": (GatedQueryGroups(4, 2, 3), [(24, 5), (5, 5), (6, 5)], "12, 6, 6 rows"),
    "woven": (WovenRows((HeadRows((2,)),), 2), [(3, 5)], "expected 2 rows"),
    "a matrix for a norm": (CountedFromZero(), [(3, 5)], "one dimension"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_other_shapes_are_refused(case):
    op, shapes, said = FAULTS[case]
    assert said in op.find_fault(shapes)


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (HeadRows((2, 1)), [(2, 5), (2, 5)]),
        (GatedQueryGroups(4, 2, 3), [(35, 5)]),
        (WovenRows((HeadRows((2,)),), 2), [(3, 5)]),
        (CountedFromZero(), [(3, 5)]),
    ],
    ids=str,
)
def test_other_shapes_of_megatron_are_refused(folder, op, shapes):
    with pytest.raises(ValueError, match="expected"):
        op.split([lazy(folder, tensor) for tensor in numbered(*shapes)])


def test_operations_know_the_sizes_of_the_model():
    numbers = rules_of("qwen3_next").numbers
    rows, gates = HeadRows((3, 3, 4, 4), 2), HeadRows((2, 2), 2)
    made = {name: make(numbers) for name, make in GATED_OPS.items()}
    assert made["gated_qkv"] == GatedQueryGroups(4, 2, 2)
    assert (made["qkvz_rows"], made["ba_rows"]) == (rows, gates)
    assert made["woven_by_head"] == WovenRows((rows, gates), 2)
    apart = (HeadRows((6, 6, 8)), HeadRows((8,)), HeadRows((4,)), HeadRows((4,)))
    assert made["woven_apart"] == WovenRows(apart, 2)
    assert made["woven_qkvz"] == WovenRows(apart[:2], 2)
    assert made["woven_ba"] == WovenRows(apart[2:], 2)
    assert QueryGroups(8, 2, 2).rows[0] == 16  # a gate is as good as a query head
