"""How many directions a difference has: what torch's singular values say of the same."""

import math
from dataclasses import replace

import pytest
import torch

from ckpt_tool.compare.mismatch import explain
from ckpt_tool.compare.pairs import compare_tensors
from ckpt_tool.compare.ranks import ENERGY, Spectrum
from ckpt_tool.compare.spectrum import add_spectra, find_spectrum
from tests.support.measuring import EXACT, normal, rank_of, stored
from tests.support.teams import run_as_team

BASE = normal(300, 200, seed=1)


def low_rank(rank: int, rows: int = 300, columns: int = 200) -> torch.Tensor:
    return normal(rows, rank, seed=2) @ normal(rank, columns, seed=3) / rank**0.5


def spectrum(tmp_path, left: torch.Tensor, right: torch.Tensor) -> Spectrum | None:
    size = float((left.double() - right.double()).abs().max())
    return find_spectrum(stored(tmp_path / "l", left), stored(tmp_path / "r", right), size)


def true_shares(left: torch.Tensor, right: torch.Tensor) -> list[float]:
    """The share of the energy that the first 1, 2, 3, ... directions hold."""
    squares = torch.linalg.svdvals(left.double() - right.double()).square()
    return (squares.cumsum(0) / squares.sum()).tolist()


@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1.0, 1e25])
def test_a_difference_of_low_rank_has_that_rank(tmp_path, rank, scale):
    base, update = BASE.double() * scale, low_rank(rank).double() * 1e-2 * scale
    found = spectrum(tmp_path, base + update, base)
    shares = true_shares(base + update, base)
    assert found.rank == 1 + sum(share < ENERGY for share in shares) <= rank
    assert (found.full, found.rounding) == (200, 0.0)
    for count, share in found.held.items():
        assert share == pytest.approx(shares[count - 1], abs=1e-5)


def test_a_difference_of_all_directions_is_never_held_by_few(tmp_path):
    """What is told is at most what is true, and near it."""
    left, right = normal(700, 600, seed=4), normal(700, 600, seed=5)
    found, shares = spectrum(tmp_path, left, right), true_shares(left, right)
    assert (found.rank, found.full) == (None, 600)
    assert list(found.held) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    for count, share in found.held.items():
        assert 0.9 * shares[count - 1] < share <= shares[count - 1] + 1e-6


@pytest.mark.parametrize("shape", [(9, 400), (400, 9), (1, 5), (1, 1)])
def test_narrow_matrices_are_known_exactly(tmp_path, shape):
    left, right = normal(*shape, seed=6), normal(*shape, seed=7)
    found, shares = spectrum(tmp_path, left, right), true_shares(left, right)
    assert found.full == min(shape)
    assert found.rank == 1 + sum(share < ENERGY for share in shares)
    for count, share in found.held.items():
        assert share == pytest.approx(shares[count - 1], abs=1e-5)


def test_rounding_is_told_apart(tmp_path):
    """Rounding to bfloat16 has every direction: the LoRA below it is still seen."""
    base = BASE.bfloat16()
    left = (base.float() + 1.5e-2 * low_rank(8)).bfloat16()
    found, shares = spectrum(tmp_path, left, base), true_shares(left, base)
    assert found.rounding == pytest.approx(1 - shares[7], rel=0.25)
    assert found.rank > 8
    assert found.beyond_rounding <= 8
    less = spectrum(tmp_path, (base.float() + 1e-4 * low_rank(8)).bfloat16(), base)
    assert less.rounding > 0.5
    assert less.beyond_rounding is None  # of what is not known well


def add(tmp_path, sides, most, size=1):
    rows = [
        (name, stored(tmp_path / f"{name}l", left), stored(tmp_path / f"{name}r", right))
        for name, (left, right) in sides.items()
    ]

    def work(team):
        found = compare_tensors(rows, EXACT, team).suspects
        return add_spectra(found, explain(found, None, rank_of, 0, team), most, team)

    (first, *others) = [found for found, _ in run_as_team(size, work, 2)]
    assert [each for each in others if repr(each) != repr(first)] == []
    return {each.name: each.spectrum for each in first}


@pytest.fixture
def sides() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    nan = BASE.clone()
    nan[3, 3] = math.nan
    return {
        "near": (BASE + 1e-3 * low_rank(2), BASE),
        "far": (BASE + low_rank(4), BASE),
        "vector": (BASE[0] + 9, BASE[0]),
        "nan": (nan, BASE),
        "shape": (BASE[:20], BASE),
        "whole": (torch.ones(5, 5, dtype=torch.int64), torch.zeros(5, 5, dtype=torch.int64)),
        "zeros": (torch.zeros(3, 3), -torch.zeros(3, 3)),
    }


def test_only_matrices_of_numbers_have_a_spectrum(tmp_path, sides):
    found = add(tmp_path, sides, 10)
    assert {name for name, each in found.items() if each is not None} == {"near", "far"}
    assert found["far"].rank <= 4


def test_only_the_worst_are_looked_at(tmp_path, sides):
    matrices = {name: sides[name] for name in ("near", "far")}
    assert {name for name, each in add(tmp_path, matrices, 1).items() if each} == {"far"}


@pytest.mark.parametrize("size", [2, 3])
def test_a_team_finds_the_same(tmp_path, sides, size):
    assert add(tmp_path, sides, 10, size) == add(tmp_path, sides, 10)


def test_blocks_of_rows_make_no_difference_to_what_is_true(tmp_path, monkeypatch):
    monkeypatch.setattr("ckpt_tool.compare.spectrum._STEP", 1000)
    found = spectrum(tmp_path, BASE + low_rank(5), BASE)
    shares = true_shares(BASE + low_rank(5), BASE)
    assert replace(found, held={}).rank == 1 + sum(share < ENERGY for share in shares)
