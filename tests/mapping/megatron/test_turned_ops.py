"""A matrix that is turned on one side: by hand, and that one direction undoes the other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.mapping.megatron.turned_ops import Turned
from tests.mapping.megatron.test_ops import folder, joined, lazy, numbered, undone
from tests.support.backed import same

assert folder  # the fixture


@given(st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_a_matrix_is_turned(folder, shape):
    (tensor,) = numbered(shape)
    assert same(joined(folder, Turned(), [tensor]), tensor.t())
    assert undone(folder, Turned(), [tensor])


@pytest.mark.parametrize("shape", [(), (4,), (2, 4, 3)])
def test_what_is_no_matrix_is_refused(folder, shape):
    assert str(list(shape)) in Turned().find_fault([shape])
    (tensor,) = numbered(shape)
    with pytest.raises(ValueError, match="expected two dimensions"):
        Turned().split([lazy(folder, tensor)])
