"""Two sides and what they come from: torch's norms of the same tensors say the same."""

import math

import pytest
import torch

from ckpt_tool.compare.moves import Moves, Three, can_be_moved, find_moves
from ckpt_tool.tensors import ahead, equality
from tests.support.measuring import normal, stored
from tests.support.teams import run_as_team

C = normal(300, 230, seed=1).double()
A, B = C + 0.01 * normal(300, 230, seed=2), C - 0.02 * normal(300, 230, seed=3)


def moved(tmp_path, *threes, size=1) -> list[Moves]:
    rows = [
        Three(
            f"t{at}", *(stored(tmp_path / f"{at}{side}", each) for side, each in enumerate(three))
        )
        for at, three in enumerate(threes)
    ]
    (found, *others) = [found for found, _ in run_as_team(size, lambda t: find_moves(rows, t), 2)]
    assert [each for each in others if each != found] == []
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_distances_are_those_of_torch(tmp_path, dtype):
    a, b, c = (each.to(dtype) for each in (A, B, C))
    (found,) = moved(tmp_path, (a, b, c))
    a, b, c = a.double(), b.double(), c.double()
    for number, difference in ((found.checkpoint, a - c), (found.reference, b - c)):
        assert number == pytest.approx(float(difference.norm() / c.norm()), rel=1e-12)
    assert found.apart == pytest.approx(float((a - b).norm() / c.norm()), rel=1e-12)
    cosine = torch.cosine_similarity((a - c).flatten(), (b - c).flatten(), dim=0)
    assert found.cosine == pytest.approx(float(cosine), abs=1e-12)
    assert (found.num_elements, found.num_odd) == (69_000, 0)


def test_dtypes_may_differ(tmp_path):
    (found,) = moved(tmp_path, (A.bfloat16(), B.half(), C))
    expected = float((A.bfloat16().double() - C).norm() / C.norm())
    assert found.checkpoint == pytest.approx(expected, rel=1e-12)


def test_who_did_not_move_has_no_direction(tmp_path):
    still, opposite, both = moved(tmp_path, (A, C, C), (A, 2 * C - A, C), (A, A, C))
    assert (still.reference, still.cosine) == (0.0, None)
    assert still.checkpoint == still.apart == still.farthest
    assert opposite.cosine == pytest.approx(-1)
    assert opposite.apart == pytest.approx(2 * opposite.checkpoint)
    assert (both.apart, both.cosine) == (0.0, pytest.approx(1))


def test_what_is_not_finite_is_left_out_and_counted(tmp_path):
    a, b, c = A.clone(), B.clone(), C.clone()
    a[0, 0], b[0, 1], c[299, 229] = math.nan, math.inf, -math.inf
    (found,) = moved(tmp_path, (a, b, c))
    rest = torch.isfinite(a) & torch.isfinite(b) & torch.isfinite(c)
    expected = float((A - C)[rest].norm() / C[rest].norm())
    assert found.num_odd == 3
    assert found.checkpoint == pytest.approx(expected, rel=1e-12)


def test_an_origin_of_zeros_gives_no_number(tmp_path):
    (found,) = moved(tmp_path, (A, 0 * C, 0 * C))
    assert (found.checkpoint, found.reference, found.farthest) == (None, 0.0, math.inf)


@pytest.mark.parametrize("size", [2, 3])
def test_a_team_finds_the_same(tmp_path, size):
    threes = [(A, B, C), (B, C, A), (A[:7], B[:7], C[:7]), (C, A, B)]
    assert moved(tmp_path, *threes, size=size) == moved(tmp_path, *threes)


def test_only_numbers_of_one_shape_move(tmp_path):
    whole, part = stored(tmp_path / "w", A), stored(tmp_path / "p", A[:5])
    integers = stored(tmp_path / "i", A.long())
    assert can_be_moved(whole, whole, whole)
    assert not can_be_moved(whole, whole, part)
    assert not can_be_moved(integers, whole, whole)


def test_what_lies_elsewhere_is_ordered_ahead_and_gives_the_same_bits(tmp_path, monkeypatch):
    shape = (700, 900)  # several steps of 128 Ki elements
    three = [normal(*shape, seed=seed) for seed in (1, 2, 3)]
    (here,) = moved(tmp_path, three)
    ordered = []
    monkeypatch.setattr(ahead, "are_there", lambda: True)
    monkeypatch.setattr(equality, "are_there", lambda: True)
    monkeypatch.setattr(ahead, "order", lambda *read: ordered.append(read))
    (there,) = moved(tmp_path, three)
    assert there == here
    by_file = {}
    for path, start, stop in ordered:
        by_file[path] = by_file.get(path, 0) + stop - start
    assert [*by_file.values()] == [700 * 900 * 4] * 3
