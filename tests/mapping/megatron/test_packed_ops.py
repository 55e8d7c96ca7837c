"""Experts in one tensor on both sides: by hand, and that one direction undoes the other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.mapping.megatron.packed_ops import Packed
from tests.mapping.megatron.test_ops import folder, joined, lazy, numbered, undone
from tests.support.backed import same

assert folder  # the fixture

sizes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))


@given(sizes, st.booleans())
def test_each_expert_is_turned_or_as_it_is(folder, shape, transpose):
    (tensor,) = numbered(shape)
    expected = tensor.transpose(1, 2) if transpose else tensor
    assert same(joined(folder, Packed(transpose), [tensor]), expected)
    assert undone(folder, Packed(transpose), [tensor])


@pytest.mark.parametrize("shape", [(), (4,), (4, 3), (2, 4, 3, 2)])
def test_what_has_no_experts_is_refused(folder, shape):
    assert str(list(shape)) in Packed(transpose=True).find_fault([shape])
    (tensor,) = numbered(shape)
    with pytest.raises(ValueError, match="expected experts in one tensor"):
        Packed(transpose=True).split([lazy(folder, tensor)])
