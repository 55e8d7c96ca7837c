"""Digests of rows however they lie, and pieces that lie elsewhere."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.compare.rows import digest_rows, find_shift
from ckpt_tool.tensors.geometry import Box
from tests.support.backed import backed, distinct
from tests.support.measuring import labels, stored


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.data())
def test_a_shift_is_where_the_rows_are(whole, data):
    at = data.draw(st.integers(0, len(whole) - 1))
    length = data.draw(st.integers(1, len(whole) - at))
    start = data.draw(st.integers(0, len(whole) - length))
    part = whole[start : start + length]
    digests = labels(torch.tensor(whole))
    found = find_shift(digests[start : start + length], at, digests)
    places = [i for i in range(len(whole)) if i != at and whole[i : i + length] == part]
    if len(set(part)) < 2 or not places:
        assert found is None
    else:
        assert at + found in places


def test_rows_that_lie_nowhere_are_not_shifted():
    whole = labels(torch.arange(8))
    assert find_shift(whole[2:5], 0, whole) == 2
    assert find_shift(whole[:3], 5, whole) == -5
    assert find_shift(whole[2:5], 2, whole) is None
    assert find_shift([whole[2], whole[4]], 0, whole) is None
    assert find_shift([b"new", whole[3]], 2, whole) is None
    assert find_shift([whole[3]] * 2, 0, [whole[3]] * 4) is None


def test_digests_are_of_rows_however_they_lie(tmp_path):
    tensor = distinct((6, 5))
    plain = digest_rows(stored(tmp_path / "plain", tensor))
    halves = [Box((0, 0), (6, 2)), Box((0, 2), (6, 3))]
    assert digest_rows(backed(tmp_path / "other", tensor, halves, (1, 0), 1)) == plain
    assert len(set(plain)) == 6
    moved = digest_rows(stored(tmp_path / "moved", tensor[[4, 0, 1, 2, 5, 3]]))
    assert moved == [plain[row] for row in (4, 0, 1, 2, 5, 3)]


def test_digests_of_many_blocks(tmp_path):
    """Rows of 100,000 bytes, ten to a block, and rows longer than a block."""
    for shape in ((23, 25_000), (3, 300_000)):
        tensor = distinct(shape)
        rows = digest_rows(stored(tmp_path / "t", tensor))
        assert digest_rows(stored(tmp_path / "flip", tensor.flip(0))) == rows[::-1]
        for at in (0, shape[0] - 1):
            alone = stored(tmp_path / "alone", tensor[at].expand(2, -1))
            assert digest_rows(alone) == [rows[at]] * 2


def test_what_has_no_rows_to_speak_of(tmp_path):
    shapes = [(), (1, 4), (0, 4), (4, 0)]
    for number, shape in enumerate(shapes):
        assert digest_rows(stored(tmp_path / str(number), torch.zeros(shape))) is None
    lazy = stored(tmp_path / "t", distinct((5, 2)))
    assert digest_rows(lazy, most=4) is None
    assert len(digest_rows(lazy, most=5)) == 5
