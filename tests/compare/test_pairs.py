"""Comparing many tensors: what differs, by one process or several."""

import pytest
import torch

from ckpt_tool.common.parallel import Team
from ckpt_tool.compare.mismatch import Mismatch, explain
from ckpt_tool.compare.pairs import Comparison, compare_tensors
from ckpt_tool.compare.stats import Tolerance
from ckpt_tool.compare.suspects import sort_worst_first
from ckpt_tool.tensors.lazy import LazyTensor
from tests.support.measuring import normal, rank_of, stored, touched
from tests.support.teams import run_as_team

Rows = list[tuple[str, LazyTensor, LazyTensor]]


@pytest.fixture
def rows(tmp_path) -> Rows:
    """Tensors of 32 x 8 elements: equal, a little different, very different, of other types."""
    base = {name: normal(32, 8, seed=seed) for seed, name in enumerate("abcdefgh")}
    other = base | {
        "b": touched(base["b"], 3, 4, by=1e-6),
        "c": base["c"] * 1.5,
        "d": base["d"].half(),
        "e": base["e"][:30],
        "f": torch.zeros(32, 8),
        "g": base["g"].half().float(),
    }
    return [
        (name, stored(tmp_path / f"{name}1", other[name]), stored(tmp_path / f"{name}2", tensor))
        for name, tensor in base.items()
    ]


def compare(rows: Rows, team: Team, most: int | None = None) -> tuple[Comparison, list[Mismatch]]:
    found = compare_tensors(rows, Tolerance(atol=1e-4), team)
    return found, explain(found.suspects, None, rank_of, most, team)


HINTS = {
    "c": "scaled by 1.5",
    "d": "equal after rounding the reference to float16",
    "e": "padded: 2 more rows in the reference, the first 30 are equal",
    "f": "all zeros in the checkpoint",
    "g": "rounded to float16: equal to the reference after rounding that to float16",
}


def test_what_differs_is_found_in_the_order_given(rows):
    (((found, mismatched), told),) = run_as_team(1, lambda team: compare(rows, team))
    assert [(each.name, each.kind) for each in found.suspects] == [
        ("c", "values"), ("d", "dtype"), ("e", "shape"), ("f", "values"), ("g", "values"),
    ]  # fmt: skip
    assert found.close == ["b"]
    assert found.distances.keys() == set("abcdfgh")  # no norm between two shapes
    assert [name for name, distance in found.distances.items() if not distance] == ["a", "h"]
    assert {each.name: each.hint for each in mismatched} == HINTS
    assert told.totals["comparing"] == 6 * 1024
    assert told.totals["explaining"] == told.done["explaining"] == 3 * 1024 + 512 + 960


@pytest.mark.parametrize("size", [2, 3])
def test_a_team_shares_the_work_and_all_know_all(rows, size):
    (((alone, explained), whole),) = run_as_team(1, lambda team: compare(rows, team))
    parts = run_as_team(size, lambda team: compare(rows, team))
    for (found, mismatched), _ in parts:
        assert (found, mismatched) == (alone, explained)
    for phase in ("comparing", "measuring", "explaining"):
        assert sum(told.totals[phase] for _, told in parts) == whole.totals[phase]
        assert all(0 < told.totals[phase] < whole.totals[phase] for _, told in parts)


def test_causes_are_sought_for_the_worst_only(rows):
    order = [each.name for each in sort_worst_first(compare_alone(rows, None))]
    assert order[:3] == ["e", "d", "f"]  # shape, dtype, then by distance
    for most in (0, 1, 3, 9):
        found = compare_alone(rows, most)
        assert [each.name for each in found] == list("cdefg"), "the order of the reference"
        assert {each.name: each.hint for each in found if each.hint} == {
            name: HINTS[name] for name in order[:most]
        }


def compare_alone(rows: Rows, most: int | None) -> list[Mismatch]:
    (((_, found), told),) = run_as_team(1, lambda team: compare(rows, team, most))
    assert ("explaining" in told.totals) == (most != 0)
    return found


def test_threads_give_the_same_causes(rows):
    for jobs in (1, 2, 7):
        (((_, found), _),) = run_as_team(1, lambda team: compare(rows, team), jobs)
        assert {each.name: each.hint for each in found} == HINTS


def test_what_cannot_be_read_in_one_process_fails_in_all(rows, tmp_path):
    (tmp_path / "a1").unlink()

    def fails(team: Team) -> bool:
        try:
            compare(rows, team)
        except Exception:
            return True
        return False

    assert [failed for failed, _ in run_as_team(3, fails)] == [True] * 3
