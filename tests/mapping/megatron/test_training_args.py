"""What Megatron-LM finds beside the weights, for three models, by hand."""

import pytest

from ckpt_tool.mapping.megatron.training_args import describe_content, make_args
from tests.support.megatron_models import CASES, FAMILIES, alike, rules_of

#: What is never said by a config, and what one may say of any model.
CONSTANT = {
    "position_embedding_type": "rope",
    "swiglu": True,
    "normalization": "RMSNorm",
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "ckpt_format": "torch_dist",
    "no_save_optim": True,
    "no_save_rng": True,
}
SAID = {
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
DECODER = {
    "num_layers": 3,
    "hidden_size": 6,
    "ffn_hidden_size": 5,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "group_query_attention": True,
    "kv_channels": 2,
    "seq_length": 4096,
    "max_position_embeddings": 4096,
    "norm_epsilon": 1e-5,
    "rotary_base": 500000,
    "rotary_percent": 1.0,
    "vocab_size": 11,
    "padded_vocab_size": 16,
    "untie_embeddings_and_output_weights": True,
}
EXPECTED = {
    "llama": {
        "add_qkv_bias": True,
        "add_bias_linear": True,
        "qk_layernorm": False,
        "multi_latent_attention": False,
        "mtp_num_layers": None,
    },
    "qwen2_moe": {
        "add_qkv_bias": True,
        "add_bias_linear": False,
        "qk_layernorm": False,
        "num_experts": 3,
        "moe_layer_freq": [1, 0, 1],
        "moe_ffn_hidden_size": 4,
        "moe_router_topk": 2,
        "moe_shared_expert_intermediate_size": 5,
        "moe_router_score_function": "softmax",
        "moe_router_enable_expert_bias": False,
        "moe_router_pre_softmax": True,
        "mtp_num_layers": None,
    },
    "ernie4_5_moe": {
        "qk_layernorm": False,
        "rotary_interleaved": True,
        "num_experts": 3,
        "moe_layer_freq": [0, 1, 1],
        "moe_ffn_hidden_size": 4,
        "moe_router_topk": 2,
        "moe_shared_expert_intermediate_size": 8,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
    },
    "deepseek_v32": {
        "multi_latent_attention": True,
        "experimental_attention_variant": "dsa",
        "dsa_indexer_n_heads": 2,
        "dsa_indexer_head_dim": 2,
        "dsa_indexer_topk": 7,
    },
    "gpt_oss": {
        "add_bias_linear": True,
        "add_qkv_bias": True,
        "swiglu": False,
        "quick_geglu": True,
        "glu_linear_offset": 1.0,
        "activation_func_clamp_value": 6.5,
        "softmax_type": "learnable",
        "moe_router_score_function": "softmax",
        "moe_router_pre_softmax": False,
    },
    "hy_v3": {
        "moe_router_topk_scaling_factor": 2.5,
        "moe_router_score_function": "sigmoid",
        "moe_shared_expert_intermediate_size": 8,
        "mtp_num_layers": 1,
    },
    "gemma3_text": {
        "apply_layernorm_1p": True,
        "swiglu": False,
        "squared_relu": False,
        "qk_layernorm": True,
        "untie_embeddings_and_output_weights": False,
        "rotary_percent": 1.0,
    },
    "nemotron": {
        "apply_layernorm_1p": True,
        "normalization": "LayerNorm",
        "swiglu": False,
        "squared_relu": True,
        "qk_layernorm": False,
        "rotary_percent": 0.5,
    },
    "olmoe": {
        "qk_layernorm": True,
        "rotary_interleaved": False,
        "num_experts": 3,
        "moe_layer_freq": [1, 1, 1],
        "moe_router_topk": 2,
        "moe_shared_expert_intermediate_size": None,
        "moe_router_score_function": "softmax",
        "moe_router_enable_expert_bias": False,
        "moe_router_pre_softmax": True,
    },
    "deepseek_v3": {
        "add_qkv_bias": False,
        "add_bias_linear": False,
        "qk_layernorm": True,
        "multi_latent_attention": True,
        "q_lora_rank": 5,
        "kv_lora_rank": 3,
        "qk_head_dim": 2,
        "qk_pos_emb_head_dim": 1,
        "v_head_dim": 4,
        "num_experts": 3,
        "moe_layer_freq": [0, 1, 1],
        "moe_shared_expert_intermediate_size": 8,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_topk_scaling_factor": 2.5,
        "moe_router_num_groups": 8,
        "moe_router_group_topk": 4,
        "mtp_num_layers": 1,
    },
}
CHANGES = {
    "gpt_oss": {"swiglu_limit": 6.5},
    "hy_v3": {"router_scaling_factor": 2.5},
    "deepseek_v32": {"index_topk": 7},
    "qwen2_moe": {"norm_topk_prob": False},
    "olmoe": {"norm_topk_prob": False},
    "deepseek_v3": {"routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4},
}


@pytest.mark.parametrize("family", EXPECTED)
def test_arguments_of_a_model(family):
    found = make_args(rules_of(family, vocab_multiple=8, **SAID, **CHANGES.get(family, {})))
    expected = CONSTANT | DECODER | EXPECTED[family]
    assert {name: found.get(name, "absent") for name in expected} == expected


def test_the_share_of_a_head_that_is_turned_by_its_width():
    found = make_args(rules_of("minimax_m2", **SAID, rotary_dim=1))
    assert found["rotary_percent"] == 0.5


def test_a_dense_model_has_no_arguments_of_experts():
    found = make_args(rules_of("llama"))
    assert not [name for name in found if name.startswith("moe_") or name == "num_experts"]
    assert not [name for name in found if name.endswith("_lora_rank")]


def plain(value: object) -> bool:
    """Whether a loader that knows no classes takes it."""
    if type(value) in (list, dict):
        return all(map(plain, value if type(value) is list else [*value, *value.values()]))
    return type(value) in (type(None), bool, int, float, str)


@pytest.mark.parametrize(("family", "layout", "changes"), CASES, ids=str)
def test_arguments_are_plain_values(family, layout, changes):
    rules = rules_of(family, layout, **SAID, **changes)
    found = make_args(rules)
    assert all(type(name) is str for name in found)
    assert [name for name, value in found.items() if type(value) is dict or not plain(value)] == []
    assert plain(describe_content(rules))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["stacked", "per-layer"])
def test_the_loader_is_told_how_layers_are_laid_out(family, layout):
    found = describe_content(rules_of(family, layout, **alike(family)))
    assert found["non_homogeneous_layers"] == (layout == "per-layer")
    assert found["singleton_local_shards"] is False


PATTERNS = {
    "llama": "*-*-*-",
    "qwen2_moe": "*E*-*E",
    "mimo": "*-*-*-/*-/*-",
    "deepseek_v3": "+-+E+E/+E",
    "glm_moe_dsa": "D-DEDE/DE",
}


@pytest.mark.parametrize(("family", "pattern"), PATTERNS.items())
def test_a_hybrid_model_counts_attention_and_mlp_by_themselves(family, pattern):
    rules = rules_of(family, "hybrid")
    found = make_args(rules)
    assert (found["hybrid_layer_pattern"], found["num_layers"]) == (pattern, 6)
    assert describe_content(rules)["non_homogeneous_layers"] is True
    assert "hybrid_layer_pattern" not in make_args(rules_of(family))


ROTARY = {
    "nothing said": ({}, (10000, 1.0)),
    "as transformers 4": ({"rope_theta": 1e6}, (1000000, 1.0)),
    "as transformers 5": ({"rope_parameters": {"rope_theta": 5e4}}, (50000, 1.0)),
    "both": ({"rope_theta": 7, "rope_parameters": {"rope_theta": 5e4}}, (50000, 1.0)),
    "a fraction": ({"rope_theta": 10000.5}, (10000.5, 1.0)),
    "a part": ({"partial_rotary_factor": 0.5}, (10000, 0.5)),
    "a part as in 5": ({"rope_parameters": {"partial_rotary_factor": 0.25}}, (10000, 0.25)),
    "by the kind of a layer": (
        {"rope_parameters": {"sliding_attention": {}, "full_attention": {"rope_theta": 5e4}}},
        (50000, 1.0),
    ),
    "no part": ({"partial_rotary_factor": None, "rope_parameters": None}, (10000, 1.0)),
}


@pytest.mark.parametrize(("changes", "expected"), ROTARY.values(), ids=ROTARY.keys())
def test_rotary_arguments(changes, expected):
    found = make_args(rules_of("glm4_moe", **changes))
    assert (found["rotary_base"], found["rotary_percent"]) == expected
    assert type(found["rotary_base"]) is type(expected[0])


def test_a_base_that_is_null_is_not_said():
    assert make_args(rules_of("llama", rope_theta=None))["rotary_base"] == 10000


def test_groups_are_said_where_heads_share_keys():
    every = make_args(rules_of("llama", num_key_value_heads=4))
    assert (every["num_query_groups"], every["group_query_attention"]) == (4, False)


def test_absent_prediction_layers_are_not_said():
    assert make_args(rules_of("mimo"))["mtp_num_layers"] == 2
    assert make_args(rules_of("mimo", num_nextn_predict_layers=0))["mtp_num_layers"] is None


#: What these classes have where their configs say nothing, and what of them is no weight.
@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("glm4", {"rotary_percent": 0.5, "rotary_interleaved": True}),
        ("nemotron", {"rotary_percent": 0.5, "rotary_interleaved": False}),
        ("qwen3_next", {"rotary_percent": 0.25}),
        ("gpt_oss", {"rotary_base": 150000}),
        ("gemma3_text", {"rotary_base": 1000000, "rotary_percent": 1.0}),
    ],
)
def test_defaults_of_a_class(family, expected):
    said = dict.fromkeys(("rope_theta", "partial_rotary_factor", "rope_parameters"))
    assert expected.items() <= make_args(rules_of(family, **said)).items()


def test_llama_4_chooses_by_sigmoid_without_a_bias_and_has_two_widths():
    found = make_args(rules_of("llama4_text"))
    sizes = rules_of("llama4_text").numbers.sizes
    assert sizes["ffn"] != sizes["expert_ffn"]
    expected = {
        "rotary_interleaved": True,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": False,
        "moe_router_pre_softmax": False,
        "ffn_hidden_size": sizes["ffn"],
        "moe_ffn_hidden_size": sizes["expert_ffn"],
    }
    assert expected.items() <= found.items()
