"""Lazy operations against torch, on tensors whose chunks lie in real files."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tool.tensors.dtypes import BFLOAT16, BY_NAME, FLOAT16, FLOAT32, FLOAT64
from ckpt_tool.tensors.geometry import Box, check_coverage
from ckpt_tool.tensors.lazy import LazyTensor, cat, stack
from tests.support.backed import backed, distinct, layouts, same


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def grid(shape: tuple[int, int], rows: int, columns: int) -> list[Box]:
    return [
        Box((r, c), (min(rows, shape[0] - r), min(columns, shape[1] - c)))
        for r in range(0, shape[0], rows)
        for c in range(0, shape[1], columns)
    ]


@given(layouts())
def test_reading_gives_what_was_written(folder, layout):
    lazy = backed(folder / "read", **layout)
    tensor = layout["tensor"]
    assert same(lazy.read(), tensor)
    assert (lazy.numel, lazy.nbytes) == (tensor.numel(), tensor.nbytes)


@st.composite
def operations(draw, tensor: torch.Tensor):
    """One operation that `tensor` allows, as the same function of a lazy and a torch tensor."""
    kinds = [growing, *([turning, cutting] * bool(tensor.ndim))]
    return draw(draw(st.sampled_from(kinds))(tensor))


@st.composite
def growing(draw, tensor: torch.Tensor):
    if draw(st.booleans()):
        dim = draw(st.integers(0, tensor.ndim))
        return lambda t: t.unsqueeze(dim)
    return lambda t: stack([t, t]) if isinstance(t, LazyTensor) else torch.stack([t, t])


@st.composite
def turning(draw, tensor: torch.Tensor):
    dim, other = (draw(st.integers(-tensor.ndim, tensor.ndim - 1)) for _ in range(2))
    return lambda t: t.transpose(dim, other)


@st.composite
def cutting(draw, tensor: torch.Tensor):
    name = draw(st.sampled_from(["narrow", "cat", "select"]))
    dim = draw(st.integers(-tensor.ndim, tensor.ndim - 1))
    size = tensor.shape[dim]
    if name == "select" and size:
        index = draw(st.integers(0, size - 1))
        return lambda t: t.select(dim, index)
    start = draw(st.integers(0, size))
    length = draw(st.integers(0, size - start))
    if name == "cat":  # the halves exchanged

        def exchange(t):
            join = cat if isinstance(t, LazyTensor) else torch.cat
            return join([t.narrow(dim, start, size - start), t.narrow(dim, 0, start)], dim)

        return exchange
    return lambda t: t.narrow(dim, start, length)


@pytest.mark.slow
@settings(max_examples=150)
@given(layouts(max_dims=3, max_size=4), st.data())
def test_any_sequence_of_operations_is_what_torch_gives(folder, layout, data):
    expected = layout["tensor"]
    lazy = backed(folder / "operations", **layout)
    for _ in range(data.draw(st.integers(1, 6))):
        operation = data.draw(operations(expected))
        expected, lazy = operation(expected), operation(lazy)
        if expected.numel() > 2000 or expected.ndim > 6:
            break
    assert lazy.shape == expected.shape
    assert check_coverage(lazy.shape, [chunk.box for chunk in lazy.chunks])
    assert same(lazy.read(), expected)


def test_operations_read_nothing(tmp_path):
    lazy = backed(tmp_path / "gone", distinct((4, 6)), grid((4, 6), 2, 3))
    (tmp_path / "gone").unlink()
    made = stack([cat([lazy, lazy], 1).transpose(0, 1).narrow(0, 3, 5)] * 2).to(BFLOAT16)
    assert made.shape == (2, 5, 4)
    with pytest.raises(OSError, match="gone"):
        made.read()


def test_cat_of_many_chunks_along_each_dimension(tmp_path):
    tensor = distinct((7, 9))
    lazy = backed(tmp_path / "t", tensor, grid((7, 9), 3, 4))
    for dim in (0, 1, -1):
        joined = cat([lazy, lazy.narrow(dim, 2, 3)], dim)
        assert same(joined.read(), torch.cat([tensor, tensor.narrow(dim, 2, 3)], dim))


def test_an_empty_piece_joins(tmp_path):
    tensor = distinct((5, 2))
    lazy = backed(tmp_path / "t", tensor)
    assert same(cat([lazy.narrow(0, 0, 0), lazy, lazy.narrow(0, 5, 0)], 0).read(), tensor)


def test_chunks_in_gives_each_meeting_chunk_once_and_by_ascending_offset(tmp_path):
    boxes = grid((9, 6), 4, 2)
    lazy = backed(tmp_path / "t", distinct((9, 6)), boxes[::-1])
    window = Box((3, 1), (3, 4))
    met = [(chunk.box, common) for chunk, common in lazy.chunks_in(window)]
    assert met == [
        (Box((0, 0), (4, 2)), Box((3, 1), (1, 1))),
        (Box((0, 2), (4, 2)), Box((3, 2), (1, 2))),
        (Box((0, 4), (4, 2)), Box((3, 4), (1, 1))),
        (Box((4, 0), (4, 2)), Box((4, 1), (2, 1))),
        (Box((4, 2), (4, 2)), Box((4, 2), (2, 2))),
        (Box((4, 4), (4, 2)), Box((4, 4), (2, 1))),
    ]


def test_chunks_in_finds_a_long_chunk_that_begins_far_before(tmp_path):
    # The long column is sorted before many short ones that do not reach the window.
    boxes = [Box((0, 0), (50, 1)), *(Box((row, 1), (1, 2)) for row in range(50))]
    tensor = distinct((50, 3))
    lazy = backed(tmp_path / "t", tensor, boxes)
    assert [chunk.box for chunk, _ in lazy.chunks_in(Box((49, 0), (1, 3)))] == [
        Box((0, 0), (50, 1)),
        Box((49, 1), (1, 2)),
    ]
    assert same(lazy.narrow(0, 48, 2).read(), tensor[48:])


@pytest.mark.parametrize("target", [BFLOAT16, FLOAT16, FLOAT64])
def test_to_casts_when_read(tmp_path, target):
    tensor = distinct((6, 5))
    lazy = backed(tmp_path / "t", tensor, grid((6, 5), 4, 3)).to(target)
    assert (lazy.dtype, lazy.source_dtype) == (target, FLOAT32)
    assert lazy.nbytes == 30 * target.itemsize
    expected = tensor.to(getattr(torch, target.name))
    assert same(lazy.read(), expected)
    assert same(lazy.transpose(0, 1).narrow(0, 1, 3).read(), expected.t()[1:4])


def test_to_its_own_dtype_changes_nothing(tmp_path):
    lazy = backed(tmp_path / "t", distinct((3,)))
    assert lazy.to(FLOAT32) is lazy


def test_a_second_cast_is_refused(tmp_path):
    lazy = backed(tmp_path / "t", distinct((3,))).to(BFLOAT16)
    with pytest.raises(ValueError, match="already cast"):
        lazy.to(FLOAT16)


@pytest.mark.parametrize("target", ["float32", "int32", "float8_e4m3fn"])
@pytest.mark.parametrize("source", [torch.int64, torch.uint8, torch.bool])
def test_casts_of_what_is_no_float_are_refused_or_right(tmp_path, source, target):
    tensor = torch.tensor([1, 0], dtype=source)
    lazy = backed(tmp_path / "t", tensor)
    try:
        cast = lazy.to(BY_NAME[target]).read()
    except ValueError:
        return
    assert same(cast, tensor.to(getattr(torch, target)))


def test_narrow_out_of_bounds_is_refused(tmp_path):
    lazy = backed(tmp_path / "t", distinct((4, 3)))
    for dim, start, length in [(0, 0, 5), (0, -1, 2), (1, 4, 0), (0, 2, -1), (2, 0, 1), (-3, 0, 1)]:
        with pytest.raises(ValueError, match=r"narrow|dimension"):
            lazy.narrow(dim, start, length)


def test_select_out_of_bounds_is_refused(tmp_path):
    lazy = backed(tmp_path / "t", distinct((4, 3)))
    for dim, index in [(0, 4), (1, -1), (2, 0)]:
        with pytest.raises(ValueError, match=r"narrow|dimension"):
            lazy.select(dim, index)


def test_a_scalar_has_no_dimensions(tmp_path):
    lazy = backed(tmp_path / "t", distinct(()))
    for operation in (
        lambda: lazy.narrow(0, 0, 1),
        lambda: lazy.select(0, 0),
        lambda: lazy.transpose(0, 0),
        lambda: cat([lazy, lazy], 0),
    ):
        with pytest.raises(ValueError, match="dimension"):
            operation()


def test_unsqueeze_outside_of_the_dimensions_is_refused(tmp_path):
    lazy = backed(tmp_path / "t", distinct((4, 3)))
    for dim in (3, 7, -4):
        with pytest.raises(ValueError, match="dimension"):
            lazy.unsqueeze(dim)


def test_cat_of_what_does_not_fit_is_refused(tmp_path):
    lazy = backed(tmp_path / "a", distinct((2, 3)))
    for name, other, dim in [
        ("rows", distinct((3, 3)), 1),
        ("dtype", distinct((2, 3), torch.int32), 0),
        ("fewer dimensions", distinct((2,)), 1),
        ("more dimensions", distinct((2, 3, 1)), 0),
    ]:
        with pytest.raises(ValueError, match="cat of"):
            cat([lazy, backed(tmp_path / name, other)], dim)


def test_cat_of_different_pending_casts_is_refused(tmp_path):
    lazy = backed(tmp_path / "a", distinct((2, 3)))
    other = backed(tmp_path / "b", distinct((2, 3), torch.bfloat16)).to(FLOAT32)
    with pytest.raises(ValueError, match="cat of"):
        cat([lazy, other], 0)


def test_stack_of_different_shapes_is_refused(tmp_path):
    one, other = (backed(tmp_path / str(n), distinct((n, 2))) for n in (1, 2))
    with pytest.raises(ValueError, match="stack of"):
        stack([one, other])
