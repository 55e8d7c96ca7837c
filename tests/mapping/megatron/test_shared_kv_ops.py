"""Queries whose keys are values, or whose keys are another layer's, both ways."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.mapping.megatron.ops import QueryGroups
from ckpt_tool.mapping.megatron.shared_kv_ops import KeysAsValues, QueriesAlone, QueryNorm
from tests.support.backed import backed, distinct, same


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as path:
        yield Path(path)


sizes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))


def weave(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, groups: int) -> torch.Tensor:
    """By hand: the query heads of each group, then its key, then its value."""
    parts = [part.chunk(groups) for part in (query, key, value)]
    return torch.cat([part[group] for group in range(groups) for part in parts])


@given(sizes)
def test_keys_are_there_twice_and_what_comes_back_is_the_first(folder, shape):
    groups, each, head, columns = shape
    op = KeysAsValues(QueryGroups(groups * each, groups, head))
    query = distinct((groups * each * head, columns))
    key = distinct((groups * head, columns)) + 1000
    assert op.find_fault([tuple(query.shape), tuple(key.shape)]) == ""
    (blocks,) = op.join([backed(folder / "q", query), backed(folder / "k", key)])
    found = torch.cat([block.read() for block in blocks])
    assert same(found, weave(query, key, key, groups))
    trained = weave(query, key, key + 5000, groups)  # what no model reads has been left behind
    for whole in (found, trained):
        back = op.split([backed(folder / "whole", whole)])
        assert [same(a.read(), b) for a, b in zip(back, (query, key), strict=True)] == [True, True]


@given(sizes)
def test_queries_alone_have_zeros_beside_them(folder, shape):
    groups, each, head, columns = shape
    op = QueriesAlone(QueryGroups(groups * each, groups, head))
    query = distinct((groups * each * head, columns)) + 1
    assert op.find_fault([tuple(query.shape)]) == ""
    (blocks,) = op.join([backed(folder / "q", query)])
    found = torch.cat([block.read() for block in blocks])
    zeros = torch.zeros((groups * head, columns), dtype=query.dtype)
    assert same(found, weave(query, zeros, zeros, groups))
    (back,) = op.split([backed(folder / "whole", weave(query, zeros + 7, zeros + 9, groups))])
    assert same(back.read(), query)


@given(st.integers(1, 9), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_norm_has_one_of_ones_beside_it(folder, size, dtype):
    norm = distinct((size,)).to(dtype) + 3
    (query,), (key,) = QueryNorm().join([backed(folder / "norm", norm)])
    assert same(query.read(), norm)
    assert same(key.read(), torch.ones(size, dtype=dtype))
    (back,) = QueryNorm().split([backed(folder / "a", norm), backed(folder / "b", norm * 2)])
    assert same(back.read(), norm)


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (KeysAsValues(QueryGroups(4, 2, 3)), [(12, 5), (12, 5)]),
        (KeysAsValues(QueryGroups(4, 2, 3)), [(12, 5), (6, 4)]),
        (QueriesAlone(QueryGroups(4, 2, 3)), [(11, 5)]),
        (QueriesAlone(QueryGroups(4, 2, 3)), [()]),
        (QueryNorm(), [(3, 2)]),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_said(op, shapes):
    assert "expected" in op.find_fault(shapes)


@pytest.mark.parametrize(
    "op", [KeysAsValues(QueryGroups(4, 2, 3)), QueriesAlone(QueryGroups(4, 2, 3))]
)
def test_rows_that_do_not_fit_are_refused(folder, op):
    with pytest.raises(ValueError, match="expected 24 rows"):
        op.split([backed(folder / "bad", distinct((18, 4)))])


def test_norms_of_two_sizes_are_refused(folder):
    with pytest.raises(ValueError, match="expected one shape"):
        QueryNorm().split([backed(folder / f"n{n}", distinct((n,))) for n in (2, 3)])
