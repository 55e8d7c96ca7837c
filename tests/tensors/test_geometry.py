"""Boxes: order, intersection, and the proof that they tile a shape."""

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.tensors.geometry import (
    Box,
    Coverage,
    check_coverage,
    cut_linear,
    find_bounds,
    intersect,
    is_in_bounds,
    is_run,
    list_runs,
    make_strides,
    unravel,
)
from tests.support.backed import tilings

shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


def slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(o, o + s) for o, s in zip(box.offsets, box.sizes, strict=True))


def counted(shape: tuple[int, ...], boxes: list[Box]) -> np.ndarray:
    """How many of `boxes` hold each element."""
    counts = np.zeros(shape, int)
    for box in boxes:
        counts[slices(box)] += 1
    return counts


def test_strides_are_row_major():
    assert make_strides((2, 3, 4)) == (12, 4, 1)
    assert make_strides((5,)) == (1,)
    assert make_strides(()) == ()


def test_places_of_elements():
    assert unravel(0, (2, 3, 4)) == (0, 0, 0)
    assert unravel(17, (2, 3, 4)) == (1, 1, 1)  # 12 + 4 + 1
    assert unravel(23, (2, 3, 4)) == (1, 2, 3)
    assert unravel(4, (5,)) == (4,)
    assert unravel(0, ()) == ()


@given(shapes)
def test_unravelling_gives_the_place_of_each_element(shape):
    places = [unravel(index, shape) for index in range(prod(shape))]
    assert places == list(np.ndindex(shape))


@pytest.mark.parametrize(
    ("sizes", "strides", "run"),
    [
        ((2, 3), (3, 1), True),
        ((2, 3), (4, 1), False),
        ((3, 2), (1, 3), False),
        ((1, 3), (99, 1), True),
        ((3, 1), (1, 99), True),
        ((2,), (2,), False),
        ((), (), True),
    ],
)
def test_what_lies_back_to_back(sizes, strides, run):
    assert is_run(sizes, strides) == run


def test_a_bounding_box_by_hand():
    # rows 1 and 3, columns 2 to 4 of a 5 x 6 matrix, turned: of the box, rows 0 and 2
    box, strides = find_bounds((5, 6), 8, (3, 2), (1, 12))
    assert box == Box((1, 2), (3, 3))
    assert strides == (1, 6)


@given(shapes, st.data())
def test_a_bounding_box_has_the_elements_of_a_block(shape, data):
    """A slice per dimension, with steps; dimensions exchanged, and some of size 1 put between."""
    parts = []
    for size in shape:
        start = data.draw(st.integers(0, size - 1))
        parts.append(
            slice(start, data.draw(st.integers(start + 1, size)), data.draw(st.integers(1, 3)))
        )
    array = np.arange(prod(shape)).reshape(shape)
    block = array[tuple(parts)].transpose(data.draw(st.permutations(range(len(shape)))))
    block = np.expand_dims(block, data.draw(st.integers(0, block.ndim)))
    strides = tuple(step // array.itemsize for step in block.strides)
    box, inner = find_bounds(shape, int(block.flat[0]), block.shape, strides)
    content = np.ascontiguousarray(array[slices(box)])
    steps = [step * array.itemsize for step in inner]
    assert (np.ndarray(block.shape, array.dtype, content, strides=steps) == block).all()
    gaps = any(part.step > 1 and part.stop - part.start > 1 for part in parts)
    assert gaps or box.volume == block.size


@given(shapes, st.data())
def test_linear_boxes_reproduce_the_range_in_order(shape, data):
    total = prod(shape)
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))
    elements = np.arange(total).reshape(shape)
    boxes = list(cut_linear(shape, start, stop))
    found = [elements[slices(box)].ravel() for box in boxes]
    assert np.concatenate([np.empty(0, int), *found]).tolist() == list(range(start, stop))
    assert len(boxes) <= 2 * len(shape) + 1


def test_linear_boxes_of_a_range_inside_a_matrix_are_row_end_whole_rows_and_row_begin():
    assert list(cut_linear((4, 3), 2, 10)) == [
        Box((0, 2), (1, 1)),
        Box((1, 0), (2, 3)),
        Box((3, 0), (1, 1)),
    ]


def test_linear_boxes_of_a_scalar_and_of_nothing():
    assert list(cut_linear((), 0, 1)) == [Box((), ())]
    assert list(cut_linear((), 0, 0)) == []
    assert list(cut_linear((3, 0), 0, 0)) == []
    assert list(cut_linear((4, 3), 5, 5)) == []


def test_a_whole_tensor_is_one_box():
    assert list(cut_linear((2, 3, 4), 0, 24)) == [Box((0, 0, 0), (2, 3, 4))]


def test_intersection():
    assert intersect(Box((0, 0), (3, 4)), Box((2, 1), (5, 2))) == Box((2, 1), (1, 2))
    assert intersect(Box((0,), (3,)), Box((3,), (2,))) is None
    assert intersect(Box((1,), (0,)), Box((0,), (4,))) is None
    assert intersect(Box((), ()), Box((), ())) == Box((), ())


@given(st.data())
def test_intersection_holds_exactly_the_common_elements(data):
    shape = data.draw(shapes)
    one, other = (data.draw(boxes_in(shape)) for _ in range(2))
    both = counted(shape, [one, other]) == 2
    common = intersect(one, other)
    assert (counted(shape, [common] if common else []) == both).all()
    assert common == intersect(other, one)


@st.composite
def boxes_in(draw, shape):
    offsets = tuple(draw(st.integers(0, n)) for n in shape)
    sizes = tuple(draw(st.integers(0, n - o)) for n, o in zip(shape, offsets, strict=True))
    return Box(offsets, sizes)


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        (Box((0, 0), (2, 3)), True),
        (Box((2, 3), (0, 0)), True),
        (Box((1, 0), (2, 3)), False),
        (Box((-1, 0), (2, 3)), False),
        (Box((0, 0), (2, -1)), False),
        (Box((0,), (2,)), False),
        (Box((0, 0), (2,)), False),
    ],
)
def test_bounds(box, inside):
    assert is_in_bounds((2, 3), box) is inside


def test_box_volume_and_text():
    assert Box((1, 2), (3, 4)).volume == 12
    assert Box((), ()).volume == 1
    assert str(Box((1, 2), (3, 4))) == "[1:4, 2:6]"


@pytest.mark.parametrize(
    ("shape", "boxes"),
    [
        ((), [Box((), ())]),
        ((0,), []),
        ((3, 0), []),
        ((3, 0), [Box((0, 0), (3, 0)), Box((0, 0), (2, 0))]),
        ((5,), [Box((3,), (2,)), Box((0,), (3,))]),
        ((5,), [Box((0,), (5,)), Box((5,), (0,))]),
        ((4, 4), [Box((r, c), (2, 2)) for c in (0, 2) for r in (2, 0)]),
        # A pinwheel: no straight cut goes through.
        (
            (3, 3),
            [
                Box((0, 0), (1, 2)),
                Box((0, 2), (2, 1)),
                Box((2, 1), (1, 2)),
                Box((1, 0), (2, 1)),
                Box((1, 1), (1, 1)),
            ],
        ),
        # An L around a corner.
        ((3, 3), [Box((0, 0), (3, 1)), Box((2, 1), (1, 2)), Box((0, 1), (2, 2))]),
    ],
)
def test_tilings_are_covered(shape, boxes):
    coverage = check_coverage(shape, boxes)
    assert coverage
    assert coverage == Coverage((), ())


def test_a_gap_is_named():
    assert check_coverage((6,), [Box((0,), (2,)), Box((5,), (1,))]) == Coverage(
        (Box((2,), (3,)),), ()
    )


def test_an_overlap_is_named():
    boxes = [Box((0, 0), (2, 3)), Box((1, 1), (1, 2))]
    assert check_coverage((2, 3), boxes) == Coverage((), (Box((1, 1), (1, 2)),))


def test_a_gap_and_an_overlap_at_once():
    boxes = [Box((0,), (3,)), Box((2,), (2,)), Box((5,), (1,))]
    assert check_coverage((6,), boxes) == Coverage((Box((4,), (1,)),), (Box((2,), (1,)),))


def test_the_missing_corner_of_an_l():
    boxes = [Box((0, 0), (1, 3)), Box((1, 0), (1, 1))]
    coverage = check_coverage((2, 3), boxes)
    assert coverage.missing == (Box((1, 1), (1, 2)),)
    assert not coverage.overlapping


def test_nothing_held_is_all_missing():
    assert check_coverage((2, 3), []).missing == (Box((0, 0), (2, 3)),)
    assert check_coverage((), []).missing == (Box((), ()),)
    assert check_coverage((2, 3), [Box((1, 1), (0, 2))]).missing == (Box((0, 0), (2, 3)),)


def test_replicas_count_as_overlaps():
    assert check_coverage((), [Box((), ())] * 2).overlapping == (Box((), ()),)
    assert check_coverage((4,), [Box((0,), (4,))] * 3).overlapping == (Box((0,), (4,)),)


def test_equal_volumes_do_not_hide_a_swap():
    # Twice the first half: the volume is right, the second half is missing.
    halves = [Box((0, 0), (2, 2)), Box((0, 0), (2, 2))]
    coverage = check_coverage((2, 4), halves)
    assert coverage.missing == (Box((0, 2), (2, 2)),)
    assert coverage.overlapping == (Box((0, 0), (2, 2)),)


def test_thousands_of_chunks_are_checked_quickly():
    boxes = [Box((row, column), (1, 10)) for row in range(400) for column in range(0, 100, 10)]
    assert check_coverage((400, 100), boxes)
    assert check_coverage((400, 100), boxes[:-1]).missing == (Box((399, 90), (1, 10)),)


@st.composite
def tiled_shapes(draw):
    """A shape and boxes that come from cutting it again and again, straight through."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple))
    return shape, draw(st.permutations(draw(tilings(shape, cuts=8))))


@given(tiled_shapes())
def test_random_tilings_are_covered(tiling):
    assert check_coverage(*tiling)


@pytest.mark.slow
@given(tiled_shapes(), st.data())
def test_damaged_tilings_are_reported_element_by_element(tiling, data):
    shape, boxes = tiling
    at = data.draw(st.integers(0, len(boxes) - 1))
    moved = data.draw(st.one_of(st.none(), boxes_in(shape)))
    boxes = [*boxes[:at], *boxes[at + 1 :], *([moved] if moved else [])]
    counts = counted(shape, boxes)
    coverage = check_coverage(shape, boxes)
    assert (counted(shape, list(coverage.missing)) == (counts == 0)).all()
    assert (counted(shape, list(coverage.overlapping)) == (counts > 1)).all()
    assert bool(coverage) == bool((counts == 1).all())


def test_runs_of_a_box():
    assert list(list_runs((2, 3, 4), Box((0, 1, 0), (2, 2, 4)))) == [(4, 8), (16, 8)]
    assert list(list_runs((2, 3, 4), Box((1, 1, 2), (1, 2, 2)))) == [(18, 2), (22, 2)]
    assert list(list_runs((2, 3, 4), Box((0, 0, 0), (2, 3, 4)))) == [(0, 24)]
    assert list(list_runs((5,), Box((3,), (2,)))) == [(3, 2)]
    assert list(list_runs((), Box((), ()))) == [(0, 1)]


@given(shapes, st.data())
def test_runs_are_the_elements_of_the_box_in_order(shape, data):
    offsets = [data.draw(st.integers(0, size - 1)) for size in shape]
    sizes = [data.draw(st.integers(1, size - at)) for size, at in zip(shape, offsets, strict=True)]
    box = Box(tuple(offsets), tuple(sizes))
    numbers = np.arange(prod(shape)).reshape(shape)
    found = [n for start, length in list_runs(shape, box) for n in range(start, start + length)]
    assert found == numbers[slices(box)].ravel().tolist()
