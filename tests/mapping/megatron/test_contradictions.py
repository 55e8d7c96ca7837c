"""Configs in which two keys say the same thing, and something different: nobody knows which holds.

Where the class of transformers reads one of the two alone, that one counts.
"""

import re

import pytest

from ckpt_tool.common.errors import CkptError
from ckpt_tool.mapping.megatron.numbers import read_numbers
from ckpt_tool.mapping.megatron.training_args import make_args
from tests.support import megatron_hybrid_models as hybrids
from tests.support.megatron_models import config_of, rules_of

#: What is said twice: the family, what its config says, and the two places.
TWICE = {
    "experts": (
        "deepseek_v3",
        {"num_experts": 8},
        "num_experts is 8, but n_routed_experts, another name for it, is 3",
    ),
    "experts, or none": (
        "qwen3_moe",
        {"num_local_experts": 0},
        "num_experts is 3, but num_local_experts, another name for it, is 0",
    ),
    "layers ahead": (
        "deepseek_v3",
        {"num_nextn_predict_layers": 1, "num_mtp_layers": 2},
        "num_nextn_predict_layers is 1, but num_mtp_layers, another name for it, is 2",
    ),
    "layers ahead, or none": (
        "qwen3_5_text",
        {"num_nextn_predict_layers": 0, "mtp_num_hidden_layers": 1},
        "num_nextn_predict_layers is 0, but mtp_num_hidden_layers, another name for it, is 1",
    ),
    "shared experts": (
        "glm4_moe",
        {"n_shared_experts": 1, "num_shared_experts": 2},
        "n_shared_experts is 1, but num_shared_experts, another name for it, is 2",
    ),
    "their width": (
        "qwen2_moe",
        {"shared_expert_intermediate_size": 4, "share_expert_dim": 8},
        "shared_expert_intermediate_size is 4, but share_expert_dim, another name for it, is 8",
    ),
    "groups": (
        "llama",
        {"num_attention_groups": 4},
        "num_key_value_heads is 2, but num_attention_groups, another name for it, is 4",
    ),
    "every how many layers": (
        "qwen3_moe",
        {"decoder_sparse_step": 1, "moe_layer_interval": 2},
        "decoder_sparse_step is 1, but moe_layer_interval, another name for it, is 2",
    ),
    "from which layer on": (
        "deepseek_v3",
        {"first_k_dense_replace": 1, "moe_layer_start_index": 2},
        "first_k_dense_replace is 1, but moe_layer_start_index, another name for it, is 2",
    ),
    "an indexer": (
        "deepseek_v32",
        {"index_n_heads": 2, "sparse_attention_config": {"sparse_num_index_heads": 4}},
        "index_n_heads is 2, but sparse_num_index_heads, another name for it, is 4",
    ),
    "layers of a tower": (
        "qwen2_5_vl",
        {"vision_config": {"depth": 2, "num_hidden_layers": 3, "num_heads": 2}},
        "vision_config.depth is 2, but vision_config.num_hidden_layers, another name for it, is 3",
    ),
    "a kind for each layer": (
        "llama",
        {"layer_types": ["full_attention"]},
        "layer_types has 1 layer, but num_hidden_layers is 3",
    ),
    "kinds of MLPs": (
        "glm4_moe_lite",
        {"mlp_layer_types": ["dense", "sparse"], "num_nextn_predict_layers": 1},
        "mlp_layer_types has 2 layers, but num_hidden_layers is 3",
    ),
    "kinds of MLPs beyond those ahead": (
        "glm4_moe_lite",
        {"mlp_layer_types": ["sparse"] * 5, "num_nextn_predict_layers": 1},
        "mlp_layer_types has 5 layers, but num_hidden_layers is 3",
    ),
    "an unknown kind of MLP": (
        "glm4_moe_lite",
        {"mlp_layer_types": ["dense", "sparse", "wide"]},
        "mlp_layer_types has 'wide', expected one of sparse, moe, hash_moe, dense",
    ),
    "numbers of MLPs": (
        "minimax_m2",
        {"sparse_attention_config": {"any": 1}, "moe_layer_freq": [0, 1]},
        "moe_layer_freq has 2 layers, but num_hidden_layers is 3",
    ),
    "numbers of attention": (
        "mimo_v2_flash",
        {"layer_types": None, "hybrid_layer_pattern": [0, 1]},
        "hybrid_layer_pattern has 2 layers, but num_hidden_layers is 3",
    ),
}


@pytest.mark.parametrize(("family", "said", "message"), TWICE.values(), ids=TWICE)
def test_two_keys_that_differ_are_both_named(family, said, message):
    with pytest.raises(CkptError, match=rf"^model.config\.json: {re.escape(message)}$"):
        read_numbers(config_of(family, **said))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"n_groups": 2, "mamba_n_groups": 4}, "n_groups is 2, but mamba_n_groups, another"),
        ({"conv_kernel": 4, "mamba_d_conv": 2}, "conv_kernel is 4, but mamba_d_conv, another"),
        (
            {"layers_block_type": ["mamba"], "layer_types": ["moe"]},
            "the kinds of layers are E and M, by layers_block_type and layer_types",
        ),
    ],
)
def test_so_are_those_of_mamba(said, message):
    changes = {"hybrid_override_pattern": None} if "layer_types" in said else {}
    with pytest.raises(CkptError, match=rf"^model.config\.json: {message}"):
        read_numbers(hybrids.config_of("nemotron_h", **said, **changes))


def test_what_is_no_tensor_is_one_number_too():
    rules = rules_of("qwen3_moe", num_experts_per_tok=2, moe_k=3)
    with pytest.raises(CkptError, match=r"num_experts_per_tok is 2, but moe_k, another name for"):
        make_args(rules)


AGREED = {
    "twice the same": ("deepseek_v3", {"num_experts": 3, "num_local_experts": 3}),
    "one of them is null": ("deepseek_v3", {"num_experts": None}),
    "by transformers' name": (
        "deepseek_v3",
        {"num_nextn_predict_layers": None, "num_mtp_layers": 1},
    ),
    # Classes of transformers read these lists, and then not the numbers.
    "a list beside an interval": ("qwen3_5_text", {"full_attention_interval": 7}),
    "a list beside a first layer": (
        "deepseek_v32",
        {"mlp_layer_types": ["dense", "sparse", "sparse"], "first_k_dense_replace": 3},
    ),
    "a list for those ahead, too": (
        "glm4_moe_lite",
        {"mlp_layer_types": ["dense", *["sparse"] * 3], "num_nextn_predict_layers": 1},
    ),
}


@pytest.mark.parametrize(("family", "said"), AGREED.values(), ids=AGREED)
def test_what_agrees_or_what_its_class_does_not_read_is_no_contradiction(family, said):
    found = read_numbers(config_of(family, **said))
    assert (found.layers, found.mtp) == (3, 1)
    assert found.experts == (0 if family == "qwen3_5_text" else 3)


def test_an_indexer_as_released():
    said = {"sparse_num_index_heads": 4, "sparse_index_dim": 6}
    config = config_of(
        "deepseek_v32", index_n_heads=None, index_head_dim=None, sparse_attention_config=said
    )
    assert read_numbers(config).sizes["index_query"] == 24
