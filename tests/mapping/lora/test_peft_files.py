"""What is written for peft selects the adapted modules, and no others."""

import pytest

from ckpt_tool.mapping.lora.names import take_apart
from ckpt_tool.mapping.lora.parameters import settle_parameters
from ckpt_tool.mapping.lora.peft_files import make_peft_config, name_for_peft
from ckpt_tool.mapping.lora.settings import Settings
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.lazy import LazyTensor

LAYERS = ("text.layers.0", "text.layers.1", "vision.layers.0")


def adapted(modules, more=()) -> dict[str, tuple[int, ...]]:
    """q and k of three layers, of which `modules` are adapted."""
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (4,), **dict(more)}
    for module in [f"{layer}.{own}_proj" for layer in LAYERS for own in "qk"]:
        if module in modules:
            shapes[f"{module}.base_layer.weight"] = (4, 4)
            shapes[f"{module}.lora_A.default.weight"] = (2, 4)
            shapes[f"{module}.lora_B.default.weight"] = (4, 2)
        else:
            shapes[f"{module}.weight"] = (4, 4)
    return shapes


def made(shapes, **config):
    said = Settings(1.0, "x", 2, None, config)
    tensors = {name: LazyTensor(shape, FLOAT32, FLOAT32, ()) for name, shape in shapes.items()}
    adapters = take_apart(tensors)
    adapters = settle_parameters(adapters, adapters.base, said)
    return make_peft_config(adapters, said, "", None), name_for_peft(adapters, said)


TEXT_Q = ["text.layers.0.q_proj", "text.layers.1.q_proj"]
ALL_Q = [*TEXT_Q, "vision.layers.0.q_proj"]


@pytest.mark.parametrize(
    ("modules", "said", "chosen"),
    [
        (ALL_Q, None, ["q_proj"]),
        (TEXT_Q, None, TEXT_Q),  # the vision tower's has the same ending
        (ALL_Q, ["q_proj"], ["q_proj"]),
        (TEXT_Q, ["q_proj"], TEXT_Q),
        (TEXT_Q, r"text\..*\.q_proj", r"text\..*\.q_proj"),
        (ALL_Q, r"text\..*\.q_proj", ["q_proj"]),
        (ALL_Q, "all-linear", ["q_proj"]),
        (TEXT_Q, ["layers.0.q_proj", "layers.1.q_proj"], TEXT_Q),
        (TEXT_Q, ["text.layers.0.q_proj", "1.q_proj"], ["text.layers.0.q_proj", "1.q_proj"]),
    ],
)
def test_modules_are_selected_as_the_checkpoint_says_if_that_selects_them(modules, said, chosen):
    found, _ = made(adapted(modules), target_modules=said)
    assert found["target_modules"] == chosen


def test_what_narrowed_a_selection_that_is_kept_stays_and_goes_with_it():
    kept, _ = made(adapted(TEXT_Q), target_modules=["q_proj"], exclude_modules="vision.*")
    assert (kept["target_modules"], kept["exclude_modules"]) == (["q_proj"], "vision.*")
    new, _ = made(adapted(TEXT_Q), target_modules="all-linear", exclude_modules="vision.*")
    assert (new["target_modules"], new["exclude_modules"]) == (TEXT_Q, None)


STACK = {
    "text.layers.0.e.base_layer.up": (3, 6, 4),
    "text.layers.0.e.lora_A.default.weight": (6, 4),
    "text.layers.0.e.lora_B.default.weight": (6, 6),
    "text.layers.1.e.up": (3, 6, 4),
}


def test_parameters_are_selected_apart_from_modules():
    found, names = made(adapted([], STACK))
    assert found["target_modules"] == []
    assert found["target_parameters"] == ["text.layers.0.e.up"]  # not that of layer 1
    assert found["peft_version"] == "0.19.0"
    assert found["rank_pattern"] == {}
    assert set(names) == {
        f"base_model.model.text.layers.0.e.lora_{part}.weight" for part in ("A", "B")
    }
    whole = {name: shape for name, shape in STACK.items() if "layers.1" not in name}
    found, _ = made(adapted(ALL_Q, whole), peft_version="0.18.0", target_parameters=["other.up"])
    assert (found["target_modules"], found["target_parameters"]) == (["q_proj"], ["e.up"])
    assert found["peft_version"] == "0.18.0"
