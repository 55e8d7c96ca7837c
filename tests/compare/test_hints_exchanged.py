"""Tensors that have another name's values, and orders of numbered ones."""

import pytest
import torch

from tests.support.backed import distinct
from tests.support.measuring import hints, normal, stored, touched

NORM, NOISE = (normal(8, 6, seed=seed) for seed in (1, 2))


def tensors(folder, left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> dict:
    return {
        name: (stored(folder / f"{name}.l", left[name]), stored(folder / f"{name}.r", right[name]))
        for name in left
    }


@pytest.mark.parametrize(("gate", "up"), [("gate_proj", "up_proj"), ("w1", "w3")])
def test_gate_and_up_exchanged(tmp_path, gate, up):
    names = [f"model.layers.0.mlp.{part}.weight" for part in (gate, up)]
    right = dict(zip(names, (NORM, NOISE), strict=True))
    left = dict(zip(names, (NOISE, NORM), strict=True))
    found = hints(tensors(tmp_path, left, right))
    assert found == {
        names[0]: f"gate and up swapped: equal to the reference's {names[1]}",
        names[1]: f"gate and up swapped: equal to the reference's {names[0]}",
    }
    left[names[0]] = touched(NOISE, 7, 5)
    assert hints(tensors(tmp_path, left, right))[names[0]] == ""


def test_gate_in_the_place_of_up_alone_is_no_exchange(tmp_path):
    names = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
    right = dict(zip(names, (NORM, NOISE), strict=True))
    left = {names[0]: normal(8, 6, seed=5), names[1]: NORM}
    assert "swapped" not in hints(tensors(tmp_path, left, right))[names[1]]


def rotated(folder, pattern: str, others: tuple[str, ...] = ()) -> dict[str, str]:
    """Three numbered tensors, each with the values of the next."""
    names = [pattern.format(number) for number in range(3)]
    right = {name: normal(4, 5, seed=seed) for seed, name in enumerate(names)}
    left = {name: right[names[(seed + 1) % 3]] for seed, name in enumerate(names)}
    for name in others:
        left[name], right[name] = normal(4, 5, seed=7), normal(4, 5, seed=8)
    return hints(tensors(folder, left, right))


@pytest.mark.parametrize(
    ("pattern", "noun"),
    [
        ("model.layers.3.mlp.experts.{}.up_proj.weight", "expert"),
        ("model.layers.{}.mlp.experts.0.up_proj.weight", "layer"),
        ("model.layers.{}.self_attn.q_proj.weight", "layer"),
        ("transformer.h.{}.mlp.weight", "layer"),
        ("h.{}.mlp.weight", "layer"),
    ],
)
def test_numbered_tensors_in_another_order(tmp_path, pattern, noun):
    found = rotated(tmp_path, pattern, ("other.0.weight",))
    assert found.pop("other.0.weight") == ""
    assert found == {
        pattern.format(here): f"{noun} order changed: this is {noun} {(here + 1) % 3} of the"
        f" reference, not {here}"
        for here in range(3)
    }


def test_tensors_exchanged_between_other_names(tmp_path):
    names = ["a.q_proj.weight", "a.k_proj.weight", "a.layers.0.x.weight", "a.layers.1.y.weight"]
    values = [normal(4, 4, seed=seed) for seed in range(4)]
    right = dict(zip(names, values, strict=True))
    left = dict(zip(names, [values[at] for at in (1, 0, 3, 2)], strict=True))
    found = hints(tensors(tmp_path, left, right))
    assert found == {
        name: f"equal to the reference's {names[at]}"
        for name, at in zip(names, (1, 0, 3, 2), strict=True)
    }
    two = "model.layers.{}.mlp.experts.{}.weight".format
    right = {two(0, 0): NORM, two(1, 1): NOISE}
    left = {two(0, 0): NOISE, two(1, 1): NORM}
    assert hints(tensors(tmp_path, left, right))[two(0, 0)] == (
        f"equal to the reference's {two(1, 1)}"
    )


def test_the_same_bytes_in_another_shape_or_dtype_are_not_exchanged(tmp_path):
    right = {"a": distinct((4, 6)), "b": NORM}
    left = {"a": NORM.T.reshape(4, 12)[:, :6], "b": distinct((8, 6))}
    assert set(hints(tensors(tmp_path, left, right)).values()) == {""}
    right = {"a": NOISE, "b": NORM}
    left = {"a": NORM.bfloat16(), "b": NOISE}
    assert hints(tensors(tmp_path, left, right)) == {"a": "", "b": "equal to the reference's a"}
    words = distinct((8, 6)).view(torch.int32)
    right = {"a": words, "b": NORM}
    left = {"a": words + 1000, "b": words.view(torch.float32)}
    assert hints(tensors(tmp_path, left, right))["b"] == ""
