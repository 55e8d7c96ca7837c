"""How far layers and modules moved: sums over tensors, those of equal ones among them."""

import math

import pytest
import torch

from ckpt_tool.compare.pairs import compare_tensors, sum_up
from ckpt_tool.compare.stats import Stats, Tolerance
from ckpt_tool.compare.totals import Totals, find_company, make_totals
from tests.support.measuring import EXACT, normal, stored, touched
from tests.support.teams import run_as_team

NAMES = [
    f"model.layers.{layer}.{module}.weight"
    for layer in range(3)
    for module in ("input_layernorm", "mlp.up_proj")
] + ["lm_head.weight"]
BASE = {name: normal(30, 7, seed=seed).double() for seed, name in enumerate(NAMES)}
Q1, UP1, UP2 = NAMES[2], NAMES[3], NAMES[5]


def total(tmp_path, changed, most=None, size=1, tolerance=EXACT):
    """The totals of BASE with ``changed`` tensors, of a team of ``size``; all have the same."""
    left = BASE | changed
    rows = [
        (name, stored(tmp_path / f"{at}l", left[name]), stored(tmp_path / f"{at}r", BASE[name]))
        for at, name in enumerate(NAMES)
    ]

    def work(team) -> Totals:
        return sum_up(rows, compare_tensors(rows, tolerance, team, most=most), team)

    found = {repr(each): each for each, _ in run_as_team(size, work)}
    assert len(found) == 1
    return next(iter(found.values()))


def norm_of(names, changed) -> float:
    """By torch, of the tensors as one vector."""
    right = torch.cat([BASE[name].flatten() for name in names])
    left = torch.cat([(BASE | changed)[name].flatten() for name in names])
    return float((left - right).norm() / right.norm())


@pytest.mark.parametrize("most", [None, 0, 1])
@pytest.mark.parametrize("size", [1, 2])
def test_a_total_is_of_all_tensors_as_one_vector(tmp_path, most, size):
    changed = {UP1: BASE[UP1] * 1.5, UP2: touched(BASE[UP2], 3, 4)}
    found = total(tmp_path, changed, most, size)
    layers = {row.name: row for row in found.layers}
    assert list(layers) == [*(f"model.layers.{n}" for n in range(3)), "outside the layers"]
    for layer, name in ((1, UP1), (2, UP2)):
        row, group = layers[f"model.layers.{layer}"], NAMES[2 * layer : 2 * layer + 2]
        assert (row.num_tensors, row.num_changed, row.num_elements) == (2, 1, 420)
        assert row.num_different == int((changed[name] != BASE[name]).sum())
        assert row.relative_norm == pytest.approx(norm_of(group, changed), rel=1e-12)
    assert (layers["model.layers.0"].relative_norm, layers["model.layers.0"].num_changed) == (0, 0)
    norms, ups, head = found.modules
    assert [row.name for row in found.modules] == [
        "model.layers.*.input_layernorm", "model.layers.*.mlp.up_proj", "lm_head",
    ]  # fmt: skip
    assert (ups.num_tensors, ups.num_changed, ups.num_different) == (3, 2, 211)
    assert ups.relative_norm == pytest.approx(norm_of(NAMES[1:6:2], changed), rel=1e-12)
    assert (norms.relative_norm, head.relative_norm) == (0, 0)


def test_where_all_is_equal_nothing_is_read_again(tmp_path):
    rows = [(name, *[stored(tmp_path / name, BASE[name])] * 2) for name in NAMES]
    work = lambda team: sum_up(rows, compare_tensors(rows, EXACT, team), team)  # noqa: E731
    ((found, told),) = run_as_team(1, work)
    assert list(told.totals) == ["comparing"]
    assert {row.relative_norm for row in (*found.layers, *found.modules)} == {0.0}
    assert sum(row.num_elements for row in found.layers) == 210 * len(NAMES)


def test_what_is_no_number_is_counted_beside_the_norm(tmp_path):
    left = BASE[UP1].clone()
    left[0, :3] = math.nan
    row = total(tmp_path, {UP1: left, UP2: BASE[UP2] * 2}, most=1).modules[1]
    assert (row.num_unlike, row.num_different) == (3, 213)
    assert math.isfinite(row.relative_norm)


def test_a_reference_of_zeros_has_no_norm():
    parts = {NAMES[0]: Stats(num_elements=4, num_different=1, squares=(1.0, 0.0, 1.0))}
    assert make_totals(parts).layers[0].relative_norm is None


def test_what_is_close_has_moved_all_the_same(tmp_path):
    found = total(tmp_path, {UP1: BASE[UP1] + 1e-9}, tolerance=Tolerance(atol=1e-6))
    assert 0 < found.layers[1].relative_norm < 1e-8


def test_company_is_a_shared_layer_or_module():
    others = [name for name in NAMES if name != Q1]
    assert find_company(others, [Q1]) == [NAMES[0], UP1, NAMES[4]]
