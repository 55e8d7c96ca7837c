"""How flat partitions hold parameters: cut as ZeRO cuts, put together as boxes, nothing is lost."""

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.readers.deepspeed.partitions import (
    Piece,
    cut_each,
    cut_joined,
    list_boxes,
    measure_piece,
)

shapes = st.lists(st.lists(st.integers(0, 4), max_size=4).map(tuple), min_size=1, max_size=6)


def number(sizes: list[int]) -> list[np.ndarray]:
    """Parameters whose elements are all distinct."""
    starts = np.cumsum([0, *sizes])
    return [np.arange(start, start + size) for start, size in zip(starts, sizes, strict=False)]


def gather(shape: tuple[int, ...], pieces: list[Piece], flat: list[list[np.ndarray]]) -> np.ndarray:
    """A parameter out of the boxes of its pieces; every element is written once."""
    found = np.full(shape, -1)
    for piece in pieces:
        boxes = list(list_boxes(shape, piece))
        assert len(boxes) <= max(2 * len(shape) - 1, 1)
        for box, at in boxes:
            where = tuple(slice(o, o + s) for o, s in zip(box.offsets, box.sizes, strict=True))
            assert (found[where] == -1).all()
            row = flat[piece.rank][piece.group][at : at + box.volume]
            found[where] = row.reshape(box.sizes)
    return found


@given(shapes, st.integers(1, 5), st.data())
def test_parameters_in_a_row_are_put_together_again(shapes, world, data):
    sizes = [prod(shape) for shape in shapes]
    gaps = [data.draw(st.integers(0, 3)) for _ in sizes]
    params = number(sizes)
    row = np.concatenate(
        [part for size, gap in zip(params, gaps, strict=True) for part in (size, np.full(gap, -2))]
    )
    padding = -len(row) % (2 * world)
    whole = np.concatenate([row, np.full(padding, -3)])
    partitions = np.split(whole, world)
    partitions[-1] = partitions[-1][: max(len(partitions[-1]) - padding, 0)]
    if data.draw(st.booleans()):
        partitions[-1] = np.split(whole, world)[-1]
    cut = cut_joined(sizes, gaps, [len(part) for part in partitions], 0)
    for shape, param, pieces in zip(shapes, params, cut, strict=True):
        found = gather(shape, pieces, [[part] for part in partitions])
        assert (found.reshape(-1) == param).all()


@given(shapes, st.integers(1, 5), st.data())
def test_parameters_cut_by_themselves_are_put_together_again(shapes, world, data):
    sizes = [prod(shape) for shape in shapes]
    params = number(sizes)
    ranks: list[list[np.ndarray]] = [[] for _ in range(world)]
    for param in params:
        length = measure_piece(len(param), world)
        padded = np.concatenate([param, np.full(length * world - len(param), -2)])
        for rank in range(world):
            ranks[rank].append(padded[rank * length : (rank + 1) * length])
    flat = [np.concatenate(rank) for rank in ranks]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(flat[0])), max_size=3)))
    groups = [np.split(rank, cuts) for rank in flat]
    cut = cut_each(sizes, world, [len(group) for group in groups[0]])
    for shape, param, pieces in zip(shapes, params, cut, strict=True):
        assert (gather(shape, pieces, groups).reshape(-1) == param).all()


def test_a_parameter_across_three_ranks():
    assert cut_joined([2, 8], [0, 0], [4, 4, 2], 1) == [
        [Piece(0, 1, 0, 0, 2)],
        [Piece(0, 1, 2, 0, 2), Piece(1, 1, 0, 2, 6), Piece(2, 1, 0, 6, 8)],
    ]


def test_the_last_piece_is_shorter_and_ranks_may_have_none():
    assert cut_each([5, 1], 3, [3]) == [
        [Piece(0, 0, 0, 0, 2), Piece(1, 0, 0, 2, 4), Piece(2, 0, 0, 4, 5)],
        [Piece(0, 0, 2, 0, 1)],
    ]


def test_padding_behind_the_last_parameter_need_not_be_there():
    assert cut_joined([3], [4], [2, 1], 0) == [[Piece(0, 0, 0, 0, 2), Piece(1, 0, 0, 2, 3)]]


@pytest.mark.parametrize("partitions", [[3, 2], [], [0, 5]])
def test_partitions_that_are_too_short_are_refused(partitions):
    with pytest.raises(ValueError, match="elements in"):
        cut_joined([4, 1], [1, 0], partitions, 0)


@pytest.mark.parametrize("groups", [[2], [4], [1, 1]])
def test_groups_that_hold_other_pieces_are_refused(groups):
    with pytest.raises(ValueError, match="elements in"):
        cut_each([5, 1], 3, groups)
