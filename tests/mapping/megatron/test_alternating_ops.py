"""Experts in one tensor: by hand, against torch, and that one direction undoes the other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.mapping.megatron.alternating_ops import Alternating
from ckpt_tool.mapping.megatron.ops import StackedHeads
from tests.mapping.megatron.test_ops import folder, joined, lazy, numbered, undone
from tests.support.backed import distinct, same

__all__ = ["folder"]

small = st.integers(1, 4)
width = st.lists(small, max_size=1)  # none: a bias


def test_columns_that_take_turns_become_gate_and_then_up(folder) -> None:
    tensor = torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]])
    found = joined(folder, Alternating(), [tensor])
    assert found.tolist() == [[[1, 5], [3, 7], [2, 6], [4, 8]]]
    bias = joined(folder, Alternating(), [torch.tensor([[1, 2, 3, 4]])])
    assert bias.tolist() == [[1, 3, 2, 4]]


@given(small, width, small)
def test_gate_and_up_are_those_of_torch(folder, experts, rest, half) -> None:
    (tensor,) = numbered([experts, *rest, 2 * half])
    parts = (tensor[..., ::2], tensor[..., 1::2])
    expected = torch.cat([part.mT if rest else part for part in parts], 1)
    assert same(joined(folder, Alternating(), [tensor]), expected.contiguous())
    assert undone(folder, Alternating(), [tensor])


@given(small, small, small, width)
def test_heads_that_share_keys_are_those_of_torch(folder, groups, per_group, head, rest) -> None:
    kv = groups * head
    (tensor,) = numbered([kv * per_group + 2 * kv, *rest])
    parts = tensor.split([kv * per_group, kv, kv])
    expected = torch.cat([part.view(groups, -1, *rest) for part in parts], 1).flatten(0, 1)
    op = StackedHeads(groups * per_group, groups)
    assert same(joined(folder, op, [tensor]), expected)
    assert undone(folder, op, [tensor])


FAULTS = {
    "an odd column": (Alternating(), (2, 3, 5), "as much of gate as of up"),
    "one dimension": (Alternating(), (4,), "[4]"),
    "rows of no heads": (StackedHeads(4, 2), (9, 3), "4 heads and 2 query groups"),
}


@pytest.mark.parametrize(("op", "shape", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_shapes_that_do_not_fit_are_said(op, shape, said) -> None:
    assert said in op.find_fault([shape])


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (Alternating(), (2, 3, 4)),
        (Alternating(), (4,)),
        (StackedHeads(4, 2), (9,)),
    ],
    ids=str,
)
def test_what_megatron_cannot_have_is_refused(folder, op, shape) -> None:
    with pytest.raises(ValueError, match="expected"):
        op.split([lazy(folder, distinct(shape))])
