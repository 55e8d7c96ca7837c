"""Which parameters adapters are about, by shapes and settings; no files."""

import pytest

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.lora.names import take_apart
from ckpt_tool.mapping.lora.parameters import settle_parameters
from ckpt_tool.mapping.lora.settings import Settings
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.lazy import LazyTensor

NORM = {"norm.weight": (4,)}


def settings(**config) -> Settings:
    return Settings(1.0, "x", 2, None, config)


def factors(wrapper: str, rank: int, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{wrapper}.lora_A.default.weight": (rank, into),
        f"{wrapper}.lora_B.default.weight": (out, rank),
    }


def settle(shapes, said: Settings | None = None, *, alone: bool = False):
    tensors = {name: LazyTensor(shape, FLOAT32, FLOAT32, ()) for name, shape in shapes.items()}
    adapters = take_apart(tensors)
    said = said or settings()
    return settle_parameters(adapters, {} if alone else adapters.base, said).modules


def stacks(gate_up, down, *wrapped) -> dict[str, tuple[int, ...]]:
    """Two stacks of three experts, both wrapped, the factors of each [out, in]."""
    below = "e.base_layer.base_layer" if len(wrapped) > 1 else "e.base_layer"
    found = {f"{below}.gate_up_proj": (3, *gate_up), f"{below}.down_proj": (3, *down)} | NORM
    wrappers = ("e.base_layer", "e") if len(wrapped) > 1 else ("e",)
    for wrapper, (out, into) in zip(wrappers, wrapped, strict=True):
        found |= factors(wrapper, 6, out, into)
    return found


@pytest.mark.parametrize("order", [1, -1])
def test_shapes_say_which_stack_a_wrapper_is_of(order):
    wrapped = [(10, 4), (4, 5)][::order]
    found = settle(stacks((10, 4), (4, 5), *wrapped))
    said = {key: (m.parameter, m.experts, m.rank, m.turned) for key, m in found.items()}
    names = ["gate_up_proj", "down_proj"][::order]
    assert said == {
        "e.base_layer": (names[0], 3, 2, False),
        "e": (names[1], 3, 2, False),
    }
    assert {module.key for module in found.values()} == {"e.gate_up_proj", "e.down_proj"}


def test_factors_that_are_the_other_way_round_are_turned():
    found = settle(stacks((10, 4), (4, 5), (4, 10), (5, 4)))  # as peft before 0.19 had them
    assert {(m.parameter, m.turned) for m in found.values()} == {
        ("gate_up_proj", True),
        ("down_proj", True),
    }


@pytest.mark.parametrize("turned", [False, True])
def test_a_square_stack_lies_as_the_other_one_does(turned):
    """2I = H: gate_up is square, down tells."""
    down = (2, 4) if turned else (4, 2)
    found = settle(stacks((4, 4), (4, 2), (4, 4), down))
    assert [m.turned for m in found.values()] == [turned, turned]


@pytest.mark.parametrize(
    ("config", "turned"),
    [
        ({"peft_version": "0.18.1"}, True),
        ({"peft_version": "0.19.0"}, False),
        ({"peft_version": "0.21.2.dev0+abc"}, False),
        ({"r": 2}, True),  # 0.18 is the first to write its version
    ],
)
def test_where_all_are_square_the_release_of_peft_says_it(config, turned):
    (found,) = settle(stacks((4, 4), (4, 2), (4, 4)), settings(**config)).values()
    assert (found.parameter, found.turned) == ("gate_up_proj", turned)


def test_a_class_that_holds_them_as_in_out_is_not_turned_by_peft():
    """[E, H, 2I] and [E, I, H] with H = I, as in gpt-oss: down is square, gate_up is not."""
    said = settings(peft_version="0.21.0", target_parameters=["e.down_proj"])
    (found,) = settle(stacks((4, 8), (4, 4), (4, 4)), said).values()
    assert (found.parameter, found.turned) == ("down_proj", True)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (stacks((4, 4), (4, 2), (4, 4)), "e: square matrices"),
        (stacks((10, 4), (4, 5), (10, 4), (5, 4)), "some are [in, out]"),
        (stacks((10, 4), (10, 4), (10, 4), (10, 4)), "nothing tells which of"),
        (stacks((10, 4), (4, 5), (7, 4)), "fit none of e.gate_up_proj [3, 10, 4], e.down_proj"),
        ({**NORM, **factors("e", 6, 4, 5), "e.base_layer.bias": (4,), **factors("q", 6, 4, 5),
          "q.base_layer.weight": (4, 5)}, "the model has no e.weight"),
        ({**NORM, "c.base_layer.weight": (6, 1, 4), "c.lora_A.default.weight": (2, 6, 4),
          "c.lora_B.default.weight": (6, 2, 1)}, "of a convolution in groups?"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_said(shapes, said):
    with pytest.raises(MappingError) as error:
        settle(shapes)
    assert any(said in fault for fault in error.value.names), error.value.names


def test_settings_choose_between_parameters_of_one_shape():
    said = settings(target_parameters=["e.down_proj"], peft_version="0.20.0")
    (found,) = settle(stacks((10, 4), (10, 4), (10, 4)), said).values()
    assert found.parameter == "down_proj"


def test_a_matrix_that_was_wrapped_as_a_parameter_has_its_name_in_the_settings():
    shapes = {**NORM, "gate.base_layer.weight": (3, 4), **factors("gate", 2, 3, 4)}
    (plain,) = settle(shapes).values()
    (wrapped,) = settle(shapes, settings(target_parameters=["gate.weight"])).values()
    assert (plain.key, wrapped.key) == ("gate", "gate.weight")


def test_without_a_model_settings_say_what_is_a_stack():
    shapes = factors("m.e.base_layer", 6, 10, 4) | factors("m.e", 6, 4, 5) | factors("q", 2, 4, 4)
    said = settings(target_parameters=["e.gate_up_proj", "e.down_proj"])
    found = settle(shapes, said, alone=True)
    assert {m.key: m.rank for m in found.values()} == {
        "m.e.gate_up_proj": 2,
        "m.e.down_proj": 2,
        "q": 2,
    }
    with pytest.raises(MappingError) as error:
        settle(shapes, alone=True)
    assert "target_parameters" in error.value.names[0]
