"""Causes that lie in one rank's shard, in shapes or in dtypes."""

import pytest
import torch

from tests.support.measuring import hint, hints, normal, rank_of, sharded, stored, touched

WHOLE = normal(12, 5, seed=1)
OTHER = normal(12, 5, seed=2)


def shard_hint(folder, *pieces: torch.Tensor, right=WHOLE, dim: int = 0, rank=rank_of) -> str:
    left = sharded(folder, *pieces, dim=dim)
    return hints({"w": (left, stored(folder / "right", right))}, rank=rank)["w"]


# --- one rank
def test_one_ranks_shard_is_stale(tmp_path):
    expected = "only rank 1's shard differs: stale, or from another step"
    assert shard_hint(tmp_path, WHOLE[:4], OTHER[4:8], WHOLE[8:]) == expected
    columns = WHOLE.split([2, 1, 2], 1)
    found = shard_hint(tmp_path, columns[0], OTHER[:, 2:3], columns[2], dim=1)
    assert found == expected


def test_one_ranks_shard_is_shifted(tmp_path):
    expected = "only rank 2's shard differs: shifted, its rows 8:12 are rows 7:11 of the reference"
    assert shard_hint(tmp_path, WHOLE[:4], WHOLE[4:8], WHOLE[7:11]) == expected
    expected = "only rank 0's shard differs: shifted, its rows 0:4 are rows 2:6 of the reference"
    assert shard_hint(tmp_path, WHOLE[2:6], WHOLE[4:8], WHOLE[8:]) == expected
    flat = WHOLE.flatten()
    expected = (
        "only rank 1's shard differs: shifted, its rows 20:40 are rows 21:41 of the reference"
    )
    assert shard_hint(tmp_path, flat[:20], flat[21:41], flat[40:], right=flat) == expected


def test_a_shard_is_not_shifted_where_one_row_is_not(tmp_path):
    rows = WHOLE[7:11].clone()
    rows[3, 4] += 1
    found = shard_hint(tmp_path, WHOLE[:4], WHOLE[4:8], rows)
    assert found == "only rank 2's shard differs: stale, or from another step"


def test_a_few_elements_of_a_shard_are_not_stale(tmp_path):
    one = touched(WHOLE[4:8], 2, 2)
    assert shard_hint(tmp_path, WHOLE[:4], one, WHOLE[8:]) == ""
    two = touched(one, 3, 4)
    expected = "only rank 1's shard differs"
    assert shard_hint(tmp_path, WHOLE[:4], two, WHOLE[8:]) == expected
    half = torch.cat([OTHER[4:6], WHOLE[6:8]])
    expected = "only rank 1's shard differs: stale, or from another step"
    assert shard_hint(tmp_path, WHOLE[:4], half, WHOLE[8:]) == expected


def test_rounding_of_one_shard(tmp_path):
    expected = (
        "only rank 1's shard differs: rounded to float16: equal to the reference after rounding"
        " that to float16"
    )
    rounded = WHOLE[4:8].half().float()
    assert shard_hint(tmp_path, WHOLE[:4], rounded, WHOLE[8:]) == expected
    rounded = touched(rounded, 0, 0, by=2.0**-20)
    found = shard_hint(tmp_path, WHOLE[:4], rounded, WHOLE[8:])
    assert found == "only rank 1's shard differs: stale, or from another step"


def test_several_ranks_differ(tmp_path):
    found = shard_hint(tmp_path, OTHER[:4], WHOLE[4:8], OTHER[8:])
    assert found == "only the shards of ranks 0, 2 differ, the others are equal"
    assert shard_hint(tmp_path, OTHER[:4], OTHER[4:8], OTHER[8:]) == ""


def test_a_cause_in_every_shard_is_still_found(tmp_path):
    left = WHOLE.bfloat16().float()
    assert shard_hint(tmp_path, left[:6], left[6:]).startswith("rounded to bfloat16")
    left = WHOLE.roll(6, 0)
    assert shard_hint(tmp_path, left[:6], left[6:]) == "gate and up halves swapped"


def test_files_of_no_rank_or_of_one_blame_nobody(tmp_path):
    pieces = (WHOLE[:6], OTHER[6:])
    assert shard_hint(tmp_path, *pieces, rank=lambda _: None) == ""
    assert shard_hint(tmp_path, *pieces, rank=lambda _: 3) == ""
    assert shard_hint(tmp_path, *pieces, rank=lambda p: rank_of(p) or None) == ""


def test_rounding_that_spares_one_rank_is_not_a_stale_shard(tmp_path):
    """The rows of rank 0 are representable in bfloat16, as padding and ones are."""
    right = torch.cat([torch.arange(30.0).reshape(6, 5), WHOLE[6:]])
    left = right.bfloat16().float()
    assert "rounded to bfloat16" in shard_hint(tmp_path, left[:6], left[6:], right=right)


# --- shapes
def test_a_transposed_matrix_by_its_shape(tmp_path):
    assert hint(tmp_path, WHOLE.T.contiguous(), WHOLE) == "transposed: otherwise equal"
    wrong = WHOLE.T.clone()
    wrong[4, 11] += 1
    assert hint(tmp_path, wrong, WHOLE) == ""
    stack = normal(2, 3, 4)
    assert hint(tmp_path, stack.transpose(1, 2), stack) == "transposed: otherwise equal"


def test_a_padded_vocabulary(tmp_path):
    padded = torch.cat([WHOLE, OTHER[:3]])
    text = "vocabulary padded: 3 more rows in the {}, the first 12 are equal"
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert hint(tmp_path, padded, WHOLE, name=name) == text.format("checkpoint")
        assert hint(tmp_path, WHOLE, padded, name=name) == text.format("reference")
    assert hint(tmp_path, torch.cat([OTHER[:3], WHOLE]), WHOLE) == ""
    padded[11, 4] += 1
    assert hint(tmp_path, padded, WHOLE) == ""
    assert hint(tmp_path, WHOLE[:0], WHOLE) == ""


@pytest.mark.parametrize("shape", [(12, 5), (3, 4, 5)])
def test_more_rows_of_something_else_are_no_vocabulary(tmp_path, shape):
    right = WHOLE.reshape(shape)
    padded = torch.cat([right, OTHER.reshape(shape)])
    found = hint(tmp_path, padded, right, name="model.layers.0.mlp.experts.up_proj.weight")
    rows = shape[0]
    assert found == f"padded: {rows} more rows in the checkpoint, the first {rows} are equal"


def test_the_same_values_in_another_shape(tmp_path):
    text = "the same 60 values in another shape"
    for shape in [(60,), (3, 20), (12, 1, 5), (5, 12)]:
        assert hint(tmp_path, WHOLE.reshape(shape), WHOLE) == text
        wrong = WHOLE.reshape(shape).clone()
        wrong.view(-1)[59] += 1
        assert hint(tmp_path, wrong, WHOLE) == ""
    assert hint(tmp_path, WHOLE.flatten()[:59], WHOLE) == ""
    assert hint(tmp_path, WHOLE[0, 0], WHOLE[:1, 0]) == "the same 1 values in another shape"


def test_the_same_bytes_of_another_dtype_are_not_the_same_values(tmp_path):
    assert hint(tmp_path, WHOLE.view(torch.int32).flatten(), WHOLE) == ""
    assert hint(tmp_path, WHOLE.T.contiguous().half(), WHOLE) == ""


# --- dtypes
@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float64, torch.float32),
        (torch.float64, torch.bfloat16),
    ],
    ids=str,
)
def test_equal_after_rounding_one_side(tmp_path, wide, narrow):
    full = normal(6, 5, dtype=wide)
    rounded = full.to(narrow)
    name = str(narrow).removeprefix("torch.")
    text = f"equal after rounding the {{}} to {name}"
    assert hint(tmp_path, full, rounded) == text.format("checkpoint")
    assert hint(tmp_path, rounded, full) == text.format("reference")
    wrong = rounded.clone()
    wrong[5, 4] *= 1 + 2 * torch.finfo(narrow).eps
    assert hint(tmp_path, full, wrong) == ""
    assert hint(tmp_path, wrong, full) == ""


def test_dtypes_of_which_none_is_finer(tmp_path):
    numbers = torch.arange(20.0)
    assert hint(tmp_path, numbers.half(), numbers.bfloat16()) == ""
    assert hint(tmp_path, numbers.int(), numbers) == ""
    assert hint(tmp_path, numbers.to(torch.float8_e5m2), numbers) == ""
