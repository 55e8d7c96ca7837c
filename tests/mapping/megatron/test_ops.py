"""Every operation: by hand, against torch, and that one direction undoes the other."""

import tempfile
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
from ckpt_tool.tensors.dtypes import BFLOAT16
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor, cat
from tests.support.backed import backed, distinct, same

_NUMBERS = count()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def lazy(folder: Path, tensor: torch.Tensor) -> LazyTensor:
    return backed(folder / str(next(_NUMBERS)), tensor)


def numbered(*shapes: Sequence[int]) -> list[torch.Tensor]:
    """Tensors no two elements of which are equal, also across tensors."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    pieces = distinct((sum(sizes),)).split(sizes)
    return [piece.reshape(tuple(shape)) for piece, shape in zip(pieces, shapes, strict=True)]


def joined(folder: Path, op: Op, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The Megatron tensor; what ``join`` promises of its parts is checked on the way."""
    assert op.find_fault([tuple(tensor.shape) for tensor in tensors]) == ""
    return torch.cat([part.read() for part in op.join([lazy(folder, t) for t in tensors])[0]])


def undone(folder: Path, op: Op, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether ``split`` gives back, bit for bit, what ``join`` got."""
    found = op.split([lazy(folder, joined(folder, op, tensors))])
    lazily = op.split([cat(op.join([lazy(folder, t) for t in tensors])[0], 0)])
    return all(
        same(part.read(), tensor) and same(again.read(), tensor)
        for part, again, tensor in zip(found, lazily, tensors, strict=True)
    )


def text(folder: Path, op: Op, *rows: str) -> str:
    """The rows of the Megatron tensor, where each row of a Hugging Face tensor is a letter."""
    tensors = [torch.tensor([ord(letter) for letter in part]) for part in rows]
    return "".join(map(chr, joined(folder, op, tensors).tolist()))


def test_query_groups_are_query_heads_then_key_then_value(folder):
    assert text(folder, QueryGroups(4, 2, 1), "abcd", "KL", "VW") == "abKVcdLW"


def test_rows_of_a_head_stay_together(folder):
    assert text(folder, QueryGroups(2, 1, 3), "abcdef", "KLM", "VWX") == "abcdefKLMVWX"
    assert text(folder, QueryGroups(2, 2, 2), "abcd", "KLMN", "VWXY") == "abKLVWcdMNXY"


def test_stacked_heads_are_query_key_and_value_of_each_head(folder):
    assert text(folder, StackedHeads(2), "abKLVW") == "aKVbLW"
    assert text(folder, StackedHeads(2), "abcdKLMNVWXY") == "abKLVWcdMNXY"


def test_gate_comes_before_up(folder):
    assert text(folder, GateUp(), "gh", "uv") == "ghuv"


def test_halves_of_the_columns_are_exchanged(folder):
    tensor = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = joined(folder, SwapHalves(), [tensor])
    assert found.tolist() == [[3, 4, 1, 2], [7, 8, 5, 6]]


def test_same_is_the_same(folder):
    tensor = lazy(folder, distinct((3, 2)))
    assert Same().join([tensor]) == [[tensor]]
    assert Same().split([tensor]) == [tensor]
    assert Same().find_fault([(3, 2)]) == ""


columns = st.lists(st.integers(1, 4), max_size=2)  # none: a bias
small = st.integers(1, 4)


@pytest.mark.slow
@given(small, small, small, columns)
def test_query_groups_are_those_of_torch(folder, groups, per_group, head_dim, rest):
    kv = groups * head_dim
    query, key, value = numbered([kv * per_group, *rest], [kv, *rest], [kv, *rest])
    expected = torch.cat([part.view(groups, -1, *rest) for part in (query, key, value)], 1)
    op = QueryGroups(groups * per_group, groups, head_dim)
    assert same(joined(folder, op, [query, key, value]), expected.flatten(0, 1))
    assert undone(folder, op, [query, key, value])


@pytest.mark.slow
@given(small, small, columns)
def test_stacked_heads_are_those_of_torch(folder, heads, head_dim, rest):
    (tensor,) = numbered([3 * heads * head_dim, *rest])
    expected = tensor.view(3, heads, head_dim, -1).transpose(0, 1).reshape(tensor.shape)
    assert same(joined(folder, StackedHeads(heads), [tensor]), expected)
    assert undone(folder, StackedHeads(heads), [tensor])


@given(st.integers(0, 5), columns)
def test_gate_and_up_are_put_together_and_taken_apart(folder, rows, rest):
    gate, up = numbered([rows, *rest], [rows, *rest])
    assert same(joined(folder, GateUp(), [gate, up]), torch.cat([gate, up]))
    assert undone(folder, GateUp(), [gate, up])


@given(st.integers(0, 4), st.integers(0, 4))
def test_exchanging_halves_twice_changes_nothing(folder, rows, half):
    (tensor,) = numbered([rows, 2 * half])
    expected = torch.cat([tensor[:, half:], tensor[:, :half]], 1)
    assert same(joined(folder, SwapHalves(), [tensor]), expected)
    assert undone(folder, SwapHalves(), [tensor])


@given(st.integers(0, 5))
def test_one_row_is_taken_out_and_put_back(folder, columns):
    (tensor,) = numbered([1, columns])
    assert same(joined(folder, OneRow(), [tensor]), tensor[0])
    assert undone(folder, OneRow(), [tensor])


@pytest.mark.slow
@given(st.integers(1, 5), st.integers(0, 5), columns)
def test_a_padded_vocabulary_ends_in_rows_of_zeros(folder, rows, missing, rest):
    (tensor,) = numbered([rows, *rest])
    op = Vocabulary(rows, rows + missing)
    found = joined(folder, op, [tensor])
    assert same(found[:rows], tensor)
    assert same(found[rows:], torch.zeros(missing, *rest))
    assert undone(folder, op, [tensor])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.uint8])
def test_padding_has_the_dtype_of_the_vocabulary(folder, dtype):
    tensor = distinct((3, 2), dtype)
    found = joined(folder, Vocabulary(3, 5), [tensor])
    assert same(found, torch.cat([tensor, torch.zeros(2, 2, dtype=dtype)]))


def test_padding_of_a_cast_vocabulary_is_cast_with_it(folder):
    tensor = lazy(folder, distinct((3, 2)))
    ((_, padding),) = Vocabulary(3, 4).join([tensor.to(BFLOAT16)])
    assert same(padding.read(), torch.zeros(1, 2, dtype=torch.bfloat16))


def test_any_padding_is_trimmed(folder):
    tensor = distinct((9, 2))
    (found,) = Vocabulary(4, 6).split([lazy(folder, tensor)])
    assert same(found.read(), tensor[:4])


def test_pieces_of_a_split_read_only_their_own_rows(folder):
    whole = backed(folder / "rows", distinct((8, 3)), [Box((r, 0), (1, 3)) for r in range(8)])
    query, key, value = QueryGroups(4, 2, 1).split([whole])
    assert [len(part.chunks) for part in (query, key, value)] == [4, 2, 2]


FAULTS = {
    "fewer query rows": (QueryGroups(4, 2, 1), [(3, 6), (2, 6), (2, 6)], "3, 6"),
    "as many keys as queries": (QueryGroups(4, 2, 1), [(4, 6), (4, 6), (4, 6)], "4, 2, 2 rows"),
    "other columns": (QueryGroups(4, 2, 1), [(4, 6), (2, 5), (2, 6)], "2, 5"),
    "a bias among weights": (QueryGroups(4, 2, 1), [(4, 6), (2,), (2, 6)], "[2]"),
    "scalars": (QueryGroups(4, 2, 1), [(), (), ()], "head_dim 1"),
    "gate and up differ": (GateUp(), [(5, 6), (4, 6)], "gate is [5, 6] and up [4, 6]"),
    "gate is a bias": (GateUp(), [(5,), (5, 6)], "gate is [5]"),
    "another vocabulary": (Vocabulary(7, 8), [(8, 6)], "[8, 6], expected 7 rows"),
    "no vocabulary": (Vocabulary(7, 8), [()], "expected 7 rows"),
    "no thirds": (StackedHeads(2), [(8, 4)], "[8, 4]"),
    "thirds that are no heads": (StackedHeads(2), [(9, 4)], "for 2 heads"),
    "no rows": (StackedHeads(2), [(0, 4)], "[0, 4]"),
    "no heads": (StackedHeads(0), [(8, 4)], "for 0 heads"),
    "no dimensions": (StackedHeads(2), [()], "[]"),
    "odd columns": (SwapHalves(), [(2, 5)], "[2, 5], expected an even number"),
    "one dimension": (SwapHalves(), [(4,)], "[4]"),
    "two rows": (OneRow(), [(2, 4)], "[2, 4], expected one row"),
    "a row by itself": (OneRow(), [(4,)], "[4]"),
    "three dimensions": (SwapHalves(), [(2, 4, 4)], "[2, 4, 4]"),
}


@pytest.mark.parametrize(("op", "shapes", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_shapes_that_do_not_fit_are_said(op, shapes, said):
    assert said in op.find_fault(shapes)


def test_heads_that_groups_do_not_divide_are_a_fault():
    assert QueryGroups(4, 3, 1).find_fault([(4, 6), (3, 6), (3, 6)]) != ""


def test_gate_and_up_without_dimensions_are_a_fault():
    assert GateUp().find_fault([(), ()]) != ""


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (QueryGroups(4, 2, 1), (7, 6)),
        (QueryGroups(4, 2, 1), (9, 6)),
        (StackedHeads(2), (8, 4)),
        (StackedHeads(2), ()),
        (GateUp(), (5, 2)),
        (Vocabulary(7, 8), (6, 2)),
    ],
    ids=str,
)
def test_a_megatron_tensor_that_does_not_fit_is_refused(folder, op, shape):
    with pytest.raises(ValueError, match=r"expected"):
        op.split([lazy(folder, distinct(shape))])


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (SwapHalves(), (2, 5)),
        (SwapHalves(), (4,)),
        (OneRow(), (1, 4)),
        (GateUp(), ()),
        (Vocabulary(1, 1), ()),
        (QueryGroups(4, 2, 1), ()),
    ],
    ids=str,
)
def test_a_megatron_tensor_of_other_dimensions_is_refused(folder, op, shape):
    with pytest.raises(ValueError, match=r"expected"):
        op.split([lazy(folder, distinct(shape))])
