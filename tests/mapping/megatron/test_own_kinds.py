"""Which layers have an indexer, in each of the ways that a config of GLM-5 may say it."""

import pytest

from ckpt_tool.common.errors import CkptError, MappingError
from ckpt_tool.mapping.megatron.numbers import read_numbers
from tests.support.megatron_models import config_of

#: What a config says of three layers, and which of them have one.
SAID = {
    "a list": ({"indexer_types": ["full", "shared", "full"]}, "FSF"),
    "a list, and of one that predicts": (
        {"indexer_types": ["full", "shared", "full", "full"]},
        "FSF",
    ),
    "letters": ({"index_topk_pattern": "FSS"}, "FSS"),
    "a list of kinds as a pattern": ({"index_topk_pattern": ["full", "full", "shared"]}, "FFS"),
    "nothing": ({}, "FFF"),
    "one in two": ({"index_topk_freq": 2, "index_skip_topk_offset": 1}, "FSF"),
    "one in four after two": ({"index_topk_freq": 4}, "FFS"),
}


@pytest.mark.parametrize(("said", "expected"), SAID.values(), ids=SAID.keys())
def test_which_layers_have_an_indexer(said, expected):
    config = config_of("glm_moe_dsa", **{"indexer_types": None, **said})
    kinds = read_numbers(config).kinds
    assert "".join({"full": "F", "shared": "S"}[kind] for kind in kinds) == expected


def test_every_layer_of_deepseek_has_one():
    assert read_numbers(config_of("deepseek_v32", indexer_types=["shared"] * 3)).kinds == ()


@pytest.mark.parametrize(
    "said",
    [
        {"indexer_types": ["full"]},
        {"indexer_types": ["full"] * 5},
        {"indexer_types": ["full", "none", "full"]},
        {"indexer_types": ["shared", "full", "full"]},
        {"indexer_types": None, "index_topk_pattern": "FXF"},
        {"indexer_types": None, "index_topk_pattern": "F" * 99},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(said):
    with pytest.raises(MappingError, match=r"indexer"):
        read_numbers(config_of("glm_moe_dsa", **said))


@pytest.mark.parametrize("said", [{"indexer_types": [1]}, {"index_topk_pattern": [["F"]]}])
def test_what_is_no_list_of_texts_is_refused(said):
    with pytest.raises(CkptError, match="a list of texts"):
        read_numbers(config_of("glm_moe_dsa", **{"indexer_types": None, **said}))
