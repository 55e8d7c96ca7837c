"""Causes of differing values: each is named where it is one, and not where it is nearly one."""

import pytest
import torch

from ckpt_tool.compare.heads import Heads
from ckpt_tool.compare.hints import Diagnosis
from ckpt_tool.compare.suspects import Suspect
from tests.support.measuring import compared, hint, normal, stored, touched

NORM, NOISE = (normal(8, 6, seed=seed) for seed in (1, 2))
HALVES = (torch.bfloat16, torch.float16)


def test_noise_has_no_cause(tmp_path):
    for dtype in (torch.float64, torch.float32, *HALVES):
        left, right = NORM.to(dtype), NOISE.to(dtype)
        assert hint(tmp_path, left, right, Heads(2, 1, 2)) == ""
    assert hint(tmp_path, NORM, NORM * (1 + 1e-3 * NOISE)) == ""
    assert hint(tmp_path, touched(NORM, 3, 4), NORM) == ""
    assert hint(tmp_path, torch.arange(9), torch.arange(9) ** 2) == ""
    assert hint(tmp_path, torch.tensor(3.0), torch.tensor(7.0)) == ""


# --- zeros
def test_zeros(tmp_path):
    zeros = torch.zeros(8, 6)
    assert hint(tmp_path, zeros, NORM) == "all zeros in the checkpoint"
    assert hint(tmp_path, NORM, zeros) == "all zeros in the reference"
    assert hint(tmp_path, touched(zeros, 7, 5, by=2.0**-149), NORM) == ""
    bad = touched(zeros, 0, 0, by=torch.nan)
    assert hint(tmp_path, bad, NORM) == ""


def test_zeros_in_one_block_are_not_zeros_everywhere(tmp_path):
    right = normal(3, 1 << 16)
    left = right.clone()
    left[1] = 0.0
    assert "all zeros" not in hint(tmp_path, left, right)
    assert "all zeros" not in hint(tmp_path, right, left)


def test_zeros_of_either_sign_are_zeros_on_both_sides(tmp_path):
    zeros = torch.zeros(4, 5)
    assert hint(tmp_path, -zeros, zeros) == ""


def test_tiny_numbers_are_not_zeros(tmp_path):
    tiny = normal(4, 5, dtype=torch.float64) * 1e-170
    assert "all zeros" not in hint(tmp_path, tiny, NORM[:4, :5].double())


# --- rounded
@pytest.mark.parametrize("via", HALVES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rounding_of_either_side(tmp_path, dtype, via):
    name = str(via).removeprefix("torch.")
    full = NORM.to(dtype) if dtype == torch.float32 else normal(8, 6, dtype=dtype)
    rounded = full.to(via).to(dtype)
    expected = f"rounded to {name}: equal to the reference after rounding that to {name}"
    assert hint(tmp_path, rounded, full) == expected
    assert hint(tmp_path, full, rounded) == f"the reference is the checkpoint rounded to {name}"
    assert hint(tmp_path, touched(rounded, 7, 5, by=2.0**-20), full) == ""
    assert hint(tmp_path, full, touched(rounded, 0, 0, by=2.0**-20)) == ""


def test_one_half_precision_rounded_to_the_other(tmp_path):
    half = NORM.half()
    through = half.bfloat16().half()
    assert hint(tmp_path, through, half).startswith("rounded to bfloat16")
    assert hint(tmp_path, half.bfloat16(), NORM.bfloat16() * 1.5) != "rounded to bfloat16"


def test_truncation_is_not_called_rounding(tmp_path):
    cut = (NORM.view(torch.int32) & -0x10000).view(torch.float32)
    assert "round" not in hint(tmp_path, cut, NORM)


# --- transposed
def test_a_transposed_square(tmp_path):
    square = normal(7, 7)
    assert hint(tmp_path, square.T.contiguous(), square) == "transposed"
    assert hint(tmp_path, touched(square.T, 6, 0), square) == ""
    stack = normal(3, 5, 5)
    assert hint(tmp_path, stack.transpose(1, 2).contiguous(), stack) == "transposed"


# --- rows
def test_rows_in_a_known_order(tmp_path):
    heads = Heads(4, 2, 8)
    assert hint(tmp_path, NORM.roll(4, 0), NORM) == "gate and up halves swapped"
    query = normal(32, 6)
    rotary = query.view(4, 2, 4, 6).transpose(1, 2).reshape(32, 6)
    name = "rotary halves of each head (head_dim 8)"
    assert hint(tmp_path, rotary, query, heads) == f"{name} interleaved"
    assert hint(tmp_path, query, rotary, heads) == f"{name} no longer interleaved"
    parts = normal(64, 3).split([32, 16, 16])
    by_group = torch.cat([part.view(2, -1, 3) for part in parts], 1).reshape(64, 3)
    text = "Q/K/V interleaved by 2 query groups, the reference by 1"
    assert hint(tmp_path, by_group, torch.cat(parts), heads) == text
    bias = torch.cat(parts)[:, 0]
    assert hint(tmp_path, by_group[:, 0], bias, heads) == text
    assert hint(tmp_path, touched(rotary, 31, 5), query, heads) == ""
    assert hint(tmp_path, touched(NORM.roll(4, 0), 0, 0), NORM) == ""


def test_rows_in_any_other_order(tmp_path):
    order = [2, 0, 1, 3, 4, 6, 7, 5]
    name = "rows permuted: the same rows in another order"
    assert hint(tmp_path, NORM[order], NORM) == name
    experts = normal(8, 3, 4)
    name = "the 8 entries of dimension 0 are permuted"
    assert hint(tmp_path, experts[order], experts) == name
    assert hint(tmp_path, touched(experts[order], 0, 0, 0), experts) == ""
    twice = order[:-1] + order[:1]
    assert hint(tmp_path, NORM[twice], NORM) == ""


def test_halves_of_a_query_are_not_gate_and_up(tmp_path):
    found = hint(tmp_path, NORM.roll(4, 0), NORM, Heads(2, 1, 4), "self_attn.q_proj.weight")
    assert found
    assert "gate" not in found


# --- scaled
def times(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    """The product, computed in float64 and rounded once."""
    return (tensor.double() * factor).to(tensor.dtype)


@pytest.mark.parametrize("factor", [0.5, -1.0, 1.0001, 0.1, 1e-3])
def test_scaling(tmp_path, factor):
    right = normal(40, 30)
    left = times(right, factor)
    assert hint(tmp_path, left, right) == f"scaled by {factor:.6g}"
    assert hint(tmp_path, touched(left, 39, 29, by=1e-4), right) == ""


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_scaling_by_three(tmp_path, dtype):
    for seed in range(8):
        right = normal(10, 10, seed=seed, dtype=dtype)
        assert hint(tmp_path, times(right, 3.0), right) == "scaled by 3"


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_scaling_by_a_power_of_two_in_half_precision(tmp_path, dtype):
    right = normal(10, 10, dtype=dtype)
    assert hint(tmp_path, right * 4, right) == "scaled by 4"
    assert hint(tmp_path, -right, right) == "scaled by -1"
    assert hint(tmp_path, right * 4 + right[0, 0], right) == ""


def test_what_is_too_small_or_not_finite_is_not_scaled(tmp_path):
    assert hint(tmp_path, 2 * NORM.flatten()[:7], NORM.flatten()[:7]) == ""
    bad = touched(NORM, 3, 3, by=torch.inf)
    assert hint(tmp_path, 2 * bad, bad) == ""
    assert hint(tmp_path, torch.arange(20) * 2, torch.arange(20)) == ""
    sparse = torch.zeros(20)
    sparse[:3] = NORM[0, :3]
    assert hint(tmp_path, sparse * 2, sparse) == ""  # three elements prove little


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_a_flipped_last_bit_is_not_scaling(tmp_path, dtype):
    right = torch.linspace(1, 9, 17).to(dtype)
    right[5] = 2.0 - torch.finfo(dtype).eps
    left = right.clone()
    left[5] -= torch.finfo(dtype).eps
    assert hint(tmp_path, left, right) == ""


def test_the_sign_of_a_zero_is_not_scaling(tmp_path):
    right = touched(NORM, 0, 0, by=-float(NORM[0, 0]))
    left = torch.where(right == 0, -0.0, right)
    assert hint(tmp_path, left, right) == ""


def test_without_numbers_only_the_bytes_speak(tmp_path):
    left, right = stored(tmp_path / "l", NORM.roll(4, 0)), stored(tmp_path / "r", NORM)
    suspect = Suspect("a", "values", left, right)
    found = Diagnosis([suspect], None, lambda _: None, 1).hint(suspect)
    assert found == "gate and up halves swapped"
    assert compared(tmp_path, NORM.roll(4, 0), NORM).num_different == 48
