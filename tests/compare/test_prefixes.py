"""Names that differ by a prefix, and whether that is all that differs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tool.common.parallel import ALONE, Team
from ckpt_tool.common.progress import NoProgress
from ckpt_tool.common.wording import count_doing
from ckpt_tool.compare.prefixes import explain_prefix
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.lazy import LazyTensor
from tests.support.measuring import normal, of_bytes, stored

NAMES = ["embed.weight", "layers.0.mlp.weight", "layers.1.mlp.weight", "norm.weight"]
ALONE_WITH_TWO = Team(ALONE, 2, NoProgress())
VALUES = {name: normal(3, 4, seed=seed) for seed, name in enumerate(NAMES)}


def written(folder, side: str, tensors: dict[str, torch.Tensor]) -> dict[str, LazyTensor]:
    return {name: stored(folder / f"{side}.{name}", value) for name, value in tensors.items()}


def hint(folder, left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> str:
    missing = [name for name in right if name not in left]
    unexpected = [name for name in left if name not in right]
    sides = written(folder, "left", left), written(folder, "right", right)
    return explain_prefix(missing, unexpected, *sides, ALONE_WITH_TWO)


def prefixed(prefix: str, tensors: dict[str, torch.Tensor] = VALUES) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.module."])
def test_a_prefix_on_either_side(tmp_path, prefix):
    text = f"4 names differ by the prefix {prefix!r}, which the {{}} has: without it 4 of 4"
    text += " tensors are equal"
    assert hint(tmp_path, prefixed(prefix), VALUES) == text.format("checkpoint")
    assert hint(tmp_path, VALUES, prefixed(prefix)) == text.format("reference")


def test_how_many_tensors_are_equal_is_counted(tmp_path):
    left = prefixed("model.")
    left["model.norm.weight"] = left["model.norm.weight"] + 1
    left["model.embed.weight"] = left["model.embed.weight"].bfloat16()
    left["model.layers.0.mlp.weight"] = left["model.layers.0.mlp.weight"].reshape(4, 3)
    assert hint(tmp_path, left, VALUES).endswith("without it 1 of 4 tensors are equal")


def test_a_prefix_is_not_claimed_where_no_tensor_is_equal(tmp_path):
    other = {name: normal(3, 4, seed=9 + seed) for seed, name in enumerate(NAMES)}
    assert hint(tmp_path, prefixed("model.", other), VALUES) == ""
    assert hint(tmp_path, VALUES, prefixed("model.", other)) == ""
    turned = {name: value.T for name, value in VALUES.items()}
    assert hint(tmp_path, prefixed("model.", turned), VALUES) == ""


def test_names_that_differ_otherwise(tmp_path):
    suffixed = {f"{name}.data": value for name, value in VALUES.items()}
    assert hint(tmp_path, suffixed, VALUES) == ""
    assert hint(tmp_path, {f"my{name}": value for name, value in VALUES.items()}, VALUES) == ""
    assert hint(tmp_path, VALUES, VALUES) == ""
    assert hint(tmp_path, {}, VALUES) == ""
    assert hint(tmp_path, VALUES, {}) == ""


def test_the_prefix_of_most_names_is_taken(tmp_path):
    left = prefixed("model.") | {"extra.embed.weight": normal(3, 4, seed=20)}
    assert hint(tmp_path, left, VALUES).startswith("4 names differ by the prefix 'model.'")


def test_names_without_a_counterpart_do_not_hide_the_prefix(tmp_path):
    left = prefixed("model.") | {"model.extra.weight": normal(2, 2)}
    right = VALUES | {"lm_head.weight": normal(2, 3)}
    expected = "4 names differ by the prefix 'model.', which the checkpoint has: without it 4 of 4"
    assert hint(tmp_path, left, right).startswith(expected)


def test_nor_do_they_where_they_come_first(tmp_path):
    right = {"a_head.weight": normal(2, 3)} | VALUES
    assert "4 names differ by the prefix" in hint(tmp_path, prefixed("model."), right)


PARTS = st.lists(st.sampled_from(["a", "b", "w"]), min_size=1, max_size=4).map(".".join)


@pytest.mark.slow
@given(st.sets(PARTS, max_size=12), st.sets(PARTS, max_size=12))
def test_no_prefix_turns_more_names_into_others(tmp_path_factory, here, there):
    """Held against every prefix that there can be; all tensors are equal."""
    tensor = of_bytes(tmp_path_factory.getbasetemp() / "equal", b"\1\2\3\4", FLOAT32, (1,))
    left, right = dict.fromkeys(here, tensor), dict.fromkeys(there, tensor)
    missing, unexpected = sorted(there - here), sorted(here - there)
    best = {}
    for side, names, longer in (
        ("checkpoint", missing, unexpected), ("reference", unexpected, missing)
    ):  # fmt: skip
        prefixes = {
            other.removesuffix(name)
            for name in names
            for other in longer
            if other.endswith(f".{name}")
        }
        counts = [sum(prefix + name in longer for name in names) for prefix in prefixes]
        best[side] = max(counts, default=0)
    text = explain_prefix(missing, unexpected, left, right, ALONE_WITH_TWO)
    side = next((side for side, count in best.items() if count), "")
    assert bool(text) == bool(side)
    counted = count_doing(best[side], "name", "differ") if side else ""
    assert text.startswith(f"{counted} by the prefix" if side else "")
    assert f"which the {side} has" in text or not side


def test_very_many_names_are_looked_through_at_once(tmp_path):
    """One name is the ending of all others, each of which then has a prefix of its own."""
    tensor = stored(tmp_path / "equal", torch.ones(1))
    right = dict.fromkeys(["weight", *(f"layers.{n}.bias" for n in range(30_000))], tensor)
    left = dict.fromkeys([f"layers.{n}.weight" for n in range(30_000)], tensor)
    text = explain_prefix(list(right), list(left), left, right, ALONE_WITH_TWO)
    assert text.startswith("1 name differs by the prefix 'layers.0.', which the checkpoint has")
