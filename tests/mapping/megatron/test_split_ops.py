"""Rows that are several tensors on the other side, both ways."""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.mapping.megatron.split_ops import RowsSplit
from tests.support.backed import backed, distinct, same


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as path:
        yield Path(path)


counts = st.lists(st.integers(1, 5), min_size=1, max_size=5)
columns = st.lists(st.integers(1, 4), max_size=2)


@given(counts, columns)
def test_each_part_has_its_rows_in_order_and_they_go_together_again(folder, rows, rest):
    tensor, op = distinct((sum(rows), *rest)), RowsSplit(tuple(rows))
    assert op.find_fault([tuple(tensor.shape)]) == ""
    parts = op.join([backed(folder / "whole", tensor)])
    wanted = [tensor[end - count : end] for end, count in zip(accumulate(rows), rows, strict=True)]
    assert all(same(part.read(), one) for (part,), one in zip(parts, wanted, strict=True))
    stored = [backed(folder / f"part{at}", one) for at, one in enumerate(wanted)]
    (back,) = op.split(stored)
    assert same(back.read(), tensor)


@pytest.mark.parametrize(
    ("rows", "shape"), [((2, 3), (6, 4)), ((2, 3), (4, 4)), ((2, 3), ()), ((5, 0), (5, 4))]
)
def test_rows_that_do_not_fit_are_said(rows, shape):
    assert f"expected {' + '.join(map(str, rows))} = 5 rows" in RowsSplit(rows).find_fault([shape])


@pytest.mark.parametrize(
    "shapes", [((2, 4), (2, 4)), ((3, 4), (3, 4)), ((2, 4), (3, 5)), ((2,), ())]
)
def test_parts_of_other_rows_are_refused(folder, shapes):
    parts = [backed(folder / f"bad{at}", distinct(shape)) for at, shape in enumerate(shapes)]
    with pytest.raises(ValueError, match=r"expected 2, 3 rows"):
        RowsSplit((2, 3)).split(parts)
