"""Names that differ by a prefix, and whether that is all that differs."""

import pytest
import torch

from ckpt_tool.compare.prefixes import prefix_hint
from ckpt_tool.tensors.lazy import LazyTensor
from tests.support.measuring import normal, stored

NAMES = ["embed.weight", "layers.0.mlp.weight", "layers.1.mlp.weight", "norm.weight"]
VALUES = {name: normal(3, 4, seed=seed) for seed, name in enumerate(NAMES)}


def written(folder, side: str, tensors: dict[str, torch.Tensor]) -> dict[str, LazyTensor]:
    return {name: stored(folder / f"{side}.{name}", value) for name, value in tensors.items()}


def hint(folder, left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> str:
    missing = [name for name in right if name not in left]
    unexpected = [name for name in left if name not in right]
    sides = written(folder, "left", left), written(folder, "right", right)
    return prefix_hint(missing, unexpected, *sides, 2)


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
