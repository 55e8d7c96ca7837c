"""Gates of one row for each head: by hand, and that one direction undoes the other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.mapping.megatron.head_gate_ops import HeadGates
from tests.mapping.megatron import test_ops
from tests.mapping.megatron.test_gated_ops import is_undone, join, letters
from tests.mapping.megatron.test_ops import lazy, numbered
from tests.support.backed import same

folder = test_ops.folder  # the fixture
few = st.integers(1, 3)


def test_a_gate_is_there_for_each_row_of_its_head(folder):
    op = HeadGates(4, 2, 2)
    found = letters(folder, op, "aAbBcCdD", "kKlL", "vVwW", "1234")
    assert found == ["aAbB1122kKvVcCdD3344lLwW"]


@given(st.tuples(few, few, few), st.integers(1, 3))
def test_it_is_undone(folder, sizes, columns):
    groups, per_group, size = sizes
    heads, kv = groups * per_group, [groups * size, columns]
    tensors = numbered([heads * size, columns], kv, kv, [heads, columns])
    op = HeadGates(heads, groups, size)
    assert is_undone(folder, op, tensors)
    (whole,) = join(folder, op, tensors)
    gates = op.find_gates(lazy(folder, whole)).read()
    assert same(gates, tensors[3].repeat_interleave(size, 0))


@given(st.tuples(few, few, few))
def test_rows_are_those_that_attention_of_megatron_core_takes_apart(folder, sizes):
    """As `get_query_key_value_tensors` does it: by group, then query, gate, key, value."""
    groups, per_group, size = sizes
    heads, kv = groups * per_group, [groups * size, 2]
    query, key, value, gate = numbered([heads * size, 2], kv, kv, [heads, 2])
    (whole,) = join(folder, HeadGates(heads, groups, size), [query, key, value, gate])
    wide = per_group * size
    parts = whole.reshape(groups, -1, 2).split([wide, wide, size, size], 1)
    assert same(parts[0].reshape(query.shape), query)
    assert same(parts[2].reshape(key.shape), key)
    assert same(parts[3].reshape(value.shape), value)
    each = parts[1].reshape(heads, size, 2)
    assert all(same(each[:, row], gate) for row in range(size))


def test_rows_that_do_not_fit_are_named(folder):
    op = HeadGates(4, 2, 3)
    assert "expected 12, 6, 6 rows" in op.find_fault([(11, 5), (6, 5), (6, 5), (4, 5)])
    assert "expected 4 rows (one for each head)" in op.find_fault([(12, 5), (6, 5), (6, 5), (3, 5)])
    with pytest.raises(ValueError, match=r"\[35, 5\], expected 36 rows"):
        op.split([lazy(folder, torch.zeros(35, 5))])


def test_gates_of_one_row_are_of_no_release(folder):
    with pytest.raises(ValueError, match="one row of gate for each of 4 heads"):
        HeadGates(4, 2, 3).split([lazy(folder, torch.zeros(28, 5))])
