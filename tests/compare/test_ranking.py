"""The worst few of many that differ: the same few, the same numbers as where all are measured."""

import math

import pytest
import torch

from ckpt_tool.common.parallel import Team
from ckpt_tool.compare.mismatch import Mismatch, explain
from ckpt_tool.compare.pairs import Comparison, compare_tensors
from ckpt_tool.compare.stats import Tolerance
from ckpt_tool.compare.suspects import sort_worst_first
from ckpt_tool.tensors.dtypes import BFLOAT16
from ckpt_tool.tensors.lazy import LazyTensor
from tests.support.measuring import EXACT, normal, rank_of, stored, touched
from tests.support.teams import run_as_team

Rows = list[tuple[str, LazyTensor, LazyTensor]]

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.fixture
def rows(tmp_path) -> Rows:
    """Tensors that differ by different amounts, of every kind that numbers are found of."""
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for seed, dtype in enumerate(FLOATS):
        right = normal(300, 230, seed=seed, dtype=dtype)
        pairs[f"all {dtype}"] = (right * (1 + 0.01 * (seed + 1)), right)
        pairs[f"one {dtype}"] = (touched(right, 299, 229), right)
    right = normal(300, 230, seed=9)
    for name, value in (("nan", math.nan), ("inf", math.inf)):
        left = right.clone()
        left[200, 7] = value
        pairs[name] = (left, right)
        pairs[f"{name} on both"] = (left + 0.5, left)
    pairs["huge"] = (right.double() * 1e200, right.double() * -1e200)
    pairs["signs of zeros"] = (torch.zeros(9, 3), -torch.zeros(9, 3))
    pairs["of zeros"] = (right, torch.zeros(300, 230))
    pairs["integers"] = (torch.arange(90), torch.arange(90) ** 2)
    pairs["dtype"] = (right.half(), right)
    pairs["shape"] = (right[:200], right)
    pairs["equal"] = (right, right)
    return [
        (name, stored(tmp_path / f"{at}l", left), stored(tmp_path / f"{at}r", right))
        for at, (name, (left, right)) in enumerate(pairs.items())
    ]


def compare(
    rows: Rows, team: Team, most: int | None, tolerance: Tolerance = EXACT
) -> tuple[Comparison, list[Mismatch]]:
    found = compare_tensors(rows, tolerance, team, most=most)
    return found, explain(found.suspects, None, rank_of, most, team)


def compare_alone(rows: Rows, most: int | None) -> tuple[Comparison, list[Mismatch]]:
    ((found, _),) = run_as_team(1, lambda team: compare(rows, team, most), 2)
    return found


@pytest.mark.parametrize("most", [0, 1, 3, 8, 30])
def test_the_worst_are_those_of_all_with_the_same_numbers(rows, most):
    whole, everything = compare_alone(rows, None)
    found, mismatched = compare_alone(rows, most)
    assert found.distances == pytest.approx(whole.distances, rel=1e-6, abs=0)  # of others: float32
    order = [each.name for each in sort_worst_first(everything)]
    assert [each.name for each in sort_worst_first(mismatched)] == order
    assert [each.name for each in mismatched] == [each.name for each in everything]
    worst = {each.name: repr(each) for each in everything if each.name in order[:most]}  # NaN
    assert {each.name: repr(each) for each in mismatched if each.name in worst} == worst
    others = [each for each in mismatched if each.name not in worst]
    assert len(others) == max(0, len(order) - most)
    assert [(each.stats, each.hint) for each in others] == [(None, "")] * len(others)
    first = {each.name: each.first_index for each in everything if each.kind == "values"}
    assert {e.name: e.first_index for e in mismatched if e.kind == "values"} == first


def test_what_is_measured_is_told(rows):
    ((_, told),) = run_as_team(1, lambda team: compare(rows, team, 3))
    assert told.done == told.totals
    assert list(told.totals) == ["comparing", "ranking", "measuring", "explaining"]
    assert 0 < told.totals["measuring"] < told.totals["ranking"] < told.totals["comparing"]


@pytest.mark.parametrize("size", [2, 3])
def test_a_team_ranks_together(rows, size):
    alone = compare_alone(rows, 4)
    for found, _ in run_as_team(size, lambda team: compare(rows, team, 4)):
        assert repr(found) == repr(alone)  # NaN


def test_a_tolerance_is_judged_on_all(tmp_path):
    """Numbers say what is close: they are found of all, however few are wanted."""
    base = {name: normal(40, 8, seed=seed) for seed, name in enumerate("abcd")}
    by = {"a": 1e-6, "b": 1.0, "c": 1e-5, "d": 2.0}
    rows = [
        (name, stored(tmp_path / f"{name}l", right + by[name]), stored(tmp_path / name, right))
        for name, right in base.items()
    ]
    work = lambda team: compare(rows, team, 1, Tolerance(atol=1e-3))  # noqa: E731
    (((found, _), _),) = run_as_team(1, work)
    assert found.close == ["a", "c"]
    assert [each.name for each in found.suspects] == ["b", "d"]


def test_nans_under_a_cast_are_no_difference_where_few_are_wanted(tmp_path):
    right = normal(20, 5)
    right[3] = math.nan
    bits = right.bfloat16().view(torch.int16)
    bits[3] = 0x7FC1  # another NaN than the cast gives
    sides = stored(tmp_path / "l", bits.view(torch.bfloat16)), stored(tmp_path / "r", right)
    rows = [("nan", sides[0], sides[1].to(BFLOAT16))]
    (((found, mismatched), _),) = run_as_team(1, lambda team: compare(rows, team, 0))
    assert (found.close, mismatched) == (["nan"], [])


def test_an_exchange_with_a_tensor_that_is_not_shown(tmp_path):
    """Its digests are known all the same."""
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(3)]
    right = {name: normal(20, 9, seed=seed) for seed, name in enumerate(names)}
    left = {name: right[names[(at + 1) % 3]] for at, name in enumerate(names)}
    rows = [
        (name, stored(tmp_path / f"l{at}", left[name]), stored(tmp_path / f"r{at}", right[name]))
        for at, name in enumerate(names)
    ]
    _, mismatched = compare_alone(rows, 1)
    (hint,) = [each.hint for each in mismatched if each.hint]
    assert hint.startswith("layer order changed")


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_what_float32_does_not_tell_apart_is_in_its_order(tmp_path, most):
    """Of each two the second is farther, by less than a millionth; only the worst have numbers."""
    right = normal(300, 230, dtype=torch.float64)
    rows = []
    for at in range(12):
        by = 1e-3 * 2 ** (at // 2)
        left = right * (1 + by)
        left[0, 7] += 0.0005 * by * (at % 2) * left[0, 7].sign()
        sides = left.float(), right.float()
        rows.append(
            (
                str(at),
                *(stored(tmp_path / f"{at}{n}", each) for n, each in zip("lr", sides, strict=True)),
            )
        )
    _, everything = compare_alone(rows, None)
    _, mismatched = compare_alone(rows, most)
    told = [each.name for each in mismatched if each.stats is not None]
    worst = [each.name for each in sort_worst_first(mismatched)[:most]]
    assert sorted(told) == sorted(worst)
    whole = {each.name: each.distance for each in everything}
    assert {each.name: each.distance for each in mismatched if each.stats is not None} == {
        name: whole[name] for name in worst
    }
    assert [each.distance for each in mismatched] == pytest.approx([*whole.values()], rel=1e-6)
    assert worst == [each.name for each in sort_worst_first(everything)[:most]]
    assert worst[0] == "11"
