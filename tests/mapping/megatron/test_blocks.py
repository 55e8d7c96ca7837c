"""Layers that have sizes of their own: what a config says of them, and what of it cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

from ckpt_tool.common.errors import FormatError, MappingError
from ckpt_tool.common.untrusted import Fields
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.megatron.blocks import Block, read_blocks
from ckpt_tool.mapping.megatron.numbers import read_numbers
from ckpt_tool.mapping.megatron.rules import make_rules
from ckpt_tool.mapping.megatron.training_args import make_args

ATTENTION = {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False}
FFN = {"ffn_mult": 2.625, "no_op": False, "replace_with_linear": False}
NOTHING = {"n_heads_in_group": None, "ffn_mult": None, "no_op": True}
CONFIG = {
    "model_type": "nemotron-nas",
    "hidden_size": 8192,
    "num_hidden_layers": 3,
    "num_attention_heads": 64,
    "vocab_size": 11,
    "intermediate_size": None,
    "num_key_value_heads": None,
    "block_configs": [
        {"attention": ATTENTION, "ffn": FFN},
        {"attention": NOTHING, "ffn": {**FFN, "ffn_mult": 1.3125}},
        {"attention": {**ATTENTION, "n_heads_in_group": 8}, "ffn": NOTHING},
    ],
}


def fields(*blocks: Any) -> Fields:
    return Fields({"block_configs": list(blocks), "hidden_size": 8192}, Path("config.json"))


def read(attention: Any = ATTENTION, ffn: Any = FFN, name: str = "ffn") -> Block:
    (block,) = read_blocks(fields({"attention": attention, name: ffn}), 1, 64)
    return block


def test_groups_and_widths_are_those_of_the_models_that_nvidia_publishes():
    """2.625 times 8192 are 14336, as a Llama of 8 billions has it."""
    assert read() == Block(32, 14336)
    assert read({**ATTENTION, "n_heads_in_group": 8}, name="mlp") == Block(8, 14336)
    assert read(ffn={**FFN, "ffn_mult": 1.3}) == Block(32, 7168)  # 7099, rounded up
    assert read({"num_query_groups": 4}, {"ffn_hidden_size": 100}) == Block(4, 100)
    assert read(NOTHING, NOTHING) == Block(0, 0)
    assert read_blocks(Fields({}, Path("config.json")), 1, 64) == ()


@pytest.mark.parametrize(
    ("attention", "ffn", "message"),
    [
        ({**ATTENTION, "n_heads_in_group": 7}, FFN, "n_heads_in_group is 7 in block_configs"),
        ({**ATTENTION, "n_heads_in_group": 0}, FFN, "n_heads_in_group is 0 in block_configs"),
        ({**ATTENTION, "n_heads_in_group": None}, FFN, "expected a size"),
        (
            {**ATTENTION, "num_query_groups": 4},
            FFN,
            "num_query_groups is 4 in block_configs, but n_heads_in_group is 2, of 64 heads in all",
        ),
        (
            ATTENTION,
            {"ffn_hidden_size": 100, "intermediate_size": 200},
            r"ffn_hidden_size is 100, but .*\.intermediate_size, another name for it, is 200",
        ),
        (ATTENTION, {**FFN, "ffn_mult": None}, "has no ffn_mult"),
        (ATTENTION, {**FFN, "ffn_mult": -1.0}, "has no ffn_mult"),
        (ATTENTION, {**FFN, "ffn_mult": 1e300}, "a finite number up to 1000"),
        ({**NOTHING, "replace_with_linear": True}, FFN, "replace_with_linear"),
        (ATTENTION, {**NOTHING, "replace_with_linear": True}, "replace_with_linear"),
        ([], FFN, "expected an object"),
        ("much", FFN, "expected an object"),
    ],
)
def test_what_cannot_be_true_is_said(attention, ffn, message):
    with pytest.raises((FormatError, MappingError), match=message):
        read(attention, ffn)


@pytest.mark.parametrize("blocks", ["many", [{}], [3, 3]])
def test_a_list_with_an_object_for_each_layer_is_expected(blocks):
    with pytest.raises((FormatError, MappingError), match=r"block_configs|not a JSON object"):
        read_blocks(Fields({"block_configs": blocks, "hidden_size": 8}, Path("config.json")), 2, 8)


def config_of(**changes: Any) -> ModelConfig:
    return ModelConfig(Path("model"), {**CONFIG, **changes}, {})


def test_each_layer_has_its_own_numbers():
    numbers = read_numbers(config_of())
    groups = [numbers.at(layer).groups for layer in range(3)]
    widths = [numbers.at(layer).sizes["ffn"] for layer in range(3)]
    assert (groups, widths) == ([32, 0, 8], [14336, 7168, 0])
    parts = [numbers.at(layer).flags & {"attention", "mlp"} for layer in range(3)]
    assert parts == [{"attention", "mlp"}, {"mlp"}, {"attention"}]


def test_arguments_have_the_config_and_the_first_groups():
    args = make_args(make_rules(config_of(), map(str, range(30))))
    assert json.loads(args["heterogeneous_layers_config_encoded_json"]) == CONFIG
    assert args["num_query_groups"] == 32


def test_names_are_there_where_the_layer_has_what_they_are_of():
    rules = make_rules(config_of(), map(str, range(30)))
    named = {name for binding in rules.bindings for name in binding.names}
    attention, mlp = "self_attention.linear_proj.weight", "mlp.linear_fc2.weight"
    assert {name.split(".", 3)[2] for name in named if name.endswith(attention)} == {"0", "2"}
    assert {name.split(".", 3)[2] for name in named if name.endswith(mlp)} == {"0", "1"}
    shapes = dict(pair for binding in rules.bindings for pair in binding.expected())
    assert shapes["model.layers.2.self_attn.k_proj.weight"] == (1024, 8192)
    assert shapes["model.layers.1.mlp.up_proj.weight"] == (7168, 8192)


@pytest.mark.parametrize("layers", ["stacked", "hybrid"])
def test_another_layout_is_refused(layers):
    with pytest.raises(MappingError, match="have sizes of their own"):
        make_rules(config_of(), map(str, range(30)), layers)
