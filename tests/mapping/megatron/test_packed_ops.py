"""Experts in one tensor on both sides: by hand, and that one direction undoes the other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.mapping.megatron.packed_ops import Packed, PackedGateUp
from ckpt_tool.tensors.dtypes import FLOAT32
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


@given(sizes)
def test_gate_and_up_of_all_experts_come_one_after_the_other(folder, shape):
    gate, up = numbered(shape, shape)
    assert same(joined(folder, PackedGateUp(), [gate, up]), torch.cat([gate, up], 1))
    assert undone(folder, PackedGateUp(), [gate, up])


def test_gate_and_up_may_be_of_two_dtypes_on_disk(folder):
    gate, up = numbered([2, 3, 4], [2, 3, 4])
    parts = [lazy(folder, gate.double()).to(FLOAT32), lazy(folder, up)]
    ((found,),) = PackedGateUp().join(parts)
    assert same(found.read(), torch.cat([gate, up], 1))


def test_what_are_no_gate_and_up_is_said(folder):
    assert "one shape" in PackedGateUp().find_fault([(2, 3, 4), (2, 3, 5)])
    assert "one shape" in PackedGateUp().find_fault([(3, 4), (3, 4)])
    with pytest.raises(ValueError, match="as much of up"):
        PackedGateUp().split([lazy(folder, torch.zeros(2, 3, 4))])
