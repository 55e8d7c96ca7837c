"""Ranking in float32: the distances of float64 to six digits, whatever the numbers are."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_tool.compare.measure import measure
from ckpt_tool.compare.quick import QuickRank
from ckpt_tool.compare.stats import Stats
from ckpt_tool.tensors.equality import Pair
from ckpt_tool.tensors.lazy import LazyTensor
from tests.support.backed import dtype_of, raw
from tests.support.measuring import EXACT, normal, stored, touched

QUICK = (torch.bfloat16, torch.float16, torch.float32)
OTHERS = (torch.float64, torch.float8_e4m3fn, torch.int32)

#: More than one thread's memory holds at once, in blocks that are no power of two.
SHAPE = (1100, 1022)


def ranked(pairs: list[Pair[str]], jobs: int = 2) -> dict[str, Stats]:
    return measure(pairs, jobs, None, lambda _: None)


def rank_quickly(left: torch.Tensor, right: torch.Tensor) -> Stats | None:
    sides = (memoryview(bytearray(raw(side))) for side in (left, right))
    with np.errstate(all="ignore"):
        return QuickRank().rank(*sides, dtype_of(left))


def both(folder: Path, left: torch.Tensor, right: torch.Tensor) -> tuple[LazyTensor, LazyTensor]:
    return stored(folder / "l", left), stored(folder / "r", right)


def check(folder: Path, left: torch.Tensor, right: torch.Tensor) -> None:
    """That what ranks is what all numbers say."""
    pairs = [Pair("t", *both(folder, left, right))]
    found, whole = ranked(pairs)["t"], measure(pairs, 1, EXACT, lambda _: None)["t"]
    assert found.distance == pytest.approx(whole.distance, rel=1e-6, abs=0)
    assert found.squares[1:] == pytest.approx(whole.squares[1:], rel=1e-6, abs=0)
    assert (found.num_elements, found.num_different) == (whole.num_elements, whole.num_different)
    assert (found.digests, found.num_unlike) == (whole.digests, whole.num_unlike)


@pytest.mark.parametrize("dtype", [*QUICK, *OTHERS], ids=str)
def test_distances_are_those_of_float64(tmp_path, dtype):
    right = (normal(*SHAPE, dtype=torch.float64) * 50).to(dtype)
    left = (right.double() + right.double().flip(0) / 50).to(dtype)
    check(tmp_path, left, right)
    assert (rank_quickly(left, right) is None) == (dtype in OTHERS)


@pytest.mark.parametrize("dtype", QUICK, ids=str)
@pytest.mark.parametrize("count", [1, 2, 7, 1 << 17, (1 << 18) + 2])
def test_of_any_length(tmp_path, dtype, count):
    right = normal(count, dtype=dtype)
    check(tmp_path, -right, right)


@pytest.mark.parametrize("by", [1e-30, 1e-17, 1e19, 1e30])
def test_what_float32_cannot_square_is_summed_in_float64(tmp_path, by):
    right = (normal(40, 30, dtype=torch.float64) * by).bfloat16()
    assert rank_quickly(right * 3, right) is None
    check(tmp_path, right * 3, right)


def test_one_small_change_of_many_elements(tmp_path):
    """Its square alone is lost beside the others, but not in the sum of differences."""
    right = normal(*SHAPE, dtype=torch.bfloat16)
    check(tmp_path, touched(right, 1099, 1021, by=2.0), right)
    tiny, right[7, 7] = right.clone(), 1.1e-22
    tiny[7, 7] = 1e-22
    assert rank_quickly(tiny, right) is None
    check(tmp_path, tiny, right)


@pytest.mark.parametrize("dtype", QUICK, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sides", ["left", "right", "both"])
def test_what_is_not_finite_is_counted(tmp_path, dtype, value, sides):
    right = normal(*SHAPE, dtype=dtype)
    left = right.flip(0)
    for side, values in (("left", left), ("right", right)):
        if sides in (side, "both"):
            values[1000, 3] = value
    check(tmp_path, left, right)
    distance = ranked([Pair("t", *both(tmp_path, left, right))])["t"].distance
    assert math.isinf(distance) == (sides != "both")


def test_zeros_and_their_signs(tmp_path):
    zeros = torch.zeros(8, 6)
    check(tmp_path, -zeros, zeros)
    check(tmp_path, normal(8, 6), zeros)
    check(tmp_path, zeros, normal(8, 6))


def test_a_block_without_a_difference_is_quick_too():
    right = normal(50, 40, dtype=torch.bfloat16)
    found = rank_quickly(right, right)
    assert found is not None
    assert (found.num_different, found.squares[2]) == (0, 0.0)
    assert found.squares[1] == pytest.approx(float((right.double() ** 2).sum()), rel=1e-6)


def test_the_number_of_jobs_changes_no_bit(tmp_path):
    pairs = []
    for seed, dtype in enumerate(QUICK):
        right = normal(*SHAPE, seed=seed, dtype=dtype)
        (tmp_path / str(seed)).mkdir()
        pairs.append(Pair(str(dtype), *both(tmp_path / str(seed), right * 1.5, right)))
    assert ranked(pairs, 1) == ranked(pairs, 4)
