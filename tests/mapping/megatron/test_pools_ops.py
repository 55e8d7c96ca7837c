"""A table of which each row is a tensor: by hand, and that one direction undoes the other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.mapping.megatron.pools_ops import RowEach
from tests.mapping.megatron import test_ops
from tests.mapping.megatron.test_gated_ops import is_undone, join
from tests.mapping.megatron.test_ops import lazy, numbered
from tests.support.backed import same

folder = test_ops.folder  # the fixture


@given(st.integers(1, 3), st.integers(1, 5))
def test_each_row_is_a_tensor(folder, count, size):
    (table,) = numbered([count, size])
    found = join(folder, RowEach(count), [table])
    assert all(same(row, expected) for row, expected in zip(found, table, strict=True))
    assert is_undone(folder, RowEach(count), [table])


@pytest.mark.parametrize("shape", [(), (2,), (1, 4), (3, 4), (2, 4, 1)])
def test_what_has_other_rows_is_refused(shape):
    assert str(list(shape)) in RowEach().find_fault([shape])


def test_rows_that_do_not_go_together_are_refused(folder):
    with pytest.raises(ValueError, match="one dimension each"):
        RowEach().split([lazy(folder, torch.zeros(2, 3)), lazy(folder, torch.zeros(3))])
    with pytest.raises(ValueError, match="stack"):
        RowEach().split([lazy(folder, torch.zeros(4)), lazy(folder, torch.zeros(3))])
