"""What a config says of the kinds of its layers, and what of it cannot be true."""

from pathlib import Path

import pytest

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields
from ckpt_tool.mapping.megatron.kinds import find_kinds, find_symbols, find_symbols_ahead


def fields(**values) -> Fields:
    return Fields(values, Path("config.json"))


SAID = {
    "a pattern": {"hybrid_override_pattern": "ME*-"},
    "a list": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
    "its other name": {"layer_types": ["linear_attention", "moe", "full_attention", "mlp"]},
    "an older list": {"layers_block_type": ["mamba", "moe", "attention", "mlp"]},
    "both": {"layers_block_type": ["mamba", "moe", "attention", "mlp"], "num_hidden_layers": 4}
    | {"hybrid_override_pattern": "ME*-"},
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_a_list_and_a_pattern_say_the_same(said):
    assert find_symbols(fields(**said)) == ("M", "E", "*", "-")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "neither layers_block_type nor hybrid_override_pattern"),
        ({"hybrid_override_pattern": "MX"}, "of the kind 'X', expected mamba"),
        ({"layers_block_type": ["mamba", "lstm"]}, "of the kind 'lstm', expected mamba"),
        (
            {"layers_block_type": ["mamba"], "hybrid_override_pattern": "MM"},
            "the kinds of layers are M and MM, by layers_block_type and hybrid_override_pattern",
        ),
        (
            {"hybrid_override_pattern": "MM", "num_hidden_layers": 3},
            "of 2 layers the kind is said, but num_hidden_layers is 3",
        ),
    ],
)
def test_what_cannot_be_true_is_said(said, message):
    with pytest.raises(MappingError, match=message):
        find_symbols(fields(**said))


def test_layers_ahead_are_attention_and_experts_if_nothing_says_it():
    assert find_symbols_ahead(fields()) == ("*", "E")
    assert find_symbols_ahead(fields(mtp_hybrid_override_pattern="M-")) == ("M", "-")
    assert find_symbols_ahead(fields(mtp_layers_block_type=["moe"])) == ("E",)


def test_each_layer_has_an_entry():
    assert find_kinds(fields(layer_types=["a", "b"]), 2) == ("a", "b")
    with pytest.raises(MappingError, match="layer_types has 1 layer, but num_hidden_layers is 2"):
        find_kinds(fields(layer_types=["a"]), 2)
