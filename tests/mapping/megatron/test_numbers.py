"""What of a ``config.json`` decides which tensors there are, and what of it is refused."""

from pathlib import Path

import pytest

from ckpt_tool.common.errors import FormatError, MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.families.table import FAMILIES
from ckpt_tool.mapping.megatron.numbers import Numbers, read_numbers, require_rows
from tests.support.megatron_hybrid_models import HYBRIDS
from tests.support.megatron_models import (
    CONFIGS,
    MOE,
    PREDICTING,
    WITH_BLOCKS,
    config_of,
    rules_of,
)

GENERAL = {"plain_query", "low_query", "shared_experts", "latent", "expert_bias", "shared_gate"}
GENERAL |= {"interleaved"}


def numbers(family: str, vocab_multiple: int = 1, **changes) -> Numbers:
    return read_numbers(config_of(family, **changes), vocab_multiple)


def without(family: str, key: str) -> ModelConfig:
    raw = {"model_type": family, **CONFIGS[family]}
    raw.pop(key)
    return ModelConfig(Path("model"), raw, {})


def flags(family: str, **changes) -> set[str]:
    return numbers(family, **changes).flags - GENERAL


def test_every_family_has_a_config_here():
    every = {name for name, family in FAMILIES.items() if family.megatron}
    assert CONFIGS.keys() | HYBRIDS.keys() | UNEVEN == every - SURROUNDED


#: Layers have sizes of their own: ``test_blocks.py``, ``test_shared_kv.py``, ``test_compressed.py``
#: and ``operations/to_mcore/test_step.py`` have them.
UNEVEN = {
    *("nemotron-nas", "step3p5", "deepseek_v4"),
    *("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"),
}


#: Their language models are others of these: ``operations/to_mcore/test_towers.py`` has them.
SURROUNDED = {
    *("glm4v", "glm46v", "glm4v_moe", "kimi_k25", "kimi_vl", "internvl", "internvl_chat"),
    *("qwen2_audio", "qwen3_asr", "qwen2_5_omni", "qwen3_omni_moe", "llama4"),
    *("NemotronH_Nano_VL_V2", "NemotronH_Nano_Omni_Reasoning_V3", "minimax_m3_vl"),
    *("step3p7", "ernie4_5_vl_moe", "ernie4_5_moe_vl"),
    *("ovis2_5", "llava_onevision1_5", "minicpmv4_6"),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_numbers_of_a_family(family):
    found = numbers(family)
    moe = frozenset(MOE.get(family, ()))
    assert (found.layers, found.heads, found.groups, found.head_dim) == (3, 4, 2, 2)
    assert (found.moe, found.experts) == (moe, 3 if moe else 0)
    assert found.mtp == PREDICTING.get(family, 0)
    vision = (2, 2) if family in WITH_BLOCKS else (0, 0)
    assert (found.vision_layers, found.vision_heads) == vision
    assert (found.vocab_size, found.padded_vocab_size) == (11, 11)


LAYERS = {
    "all": ("qwen3_moe", {}, {0, 1, 2, 3, 4, 5}),
    "a step of 1": ("qwen3_moe", {"decoder_sparse_step": 1}, {0, 1, 2, 3, 4, 5}),
    "a step of 2": ("qwen2_moe", {"decoder_sparse_step": 2, "mlp_only_layers": []}, {1, 3, 5}),
    "a step of 4": ("qwen3_moe", {"decoder_sparse_step": 4}, {3}),
    "a list": ("qwen3_moe", {"mlp_only_layers": [0, 4]}, {1, 2, 3, 5}),
    "a list and a step": ("qwen3_moe", {"mlp_only_layers": [3], "decoder_sparse_step": 2}, {1, 5}),
    "no list": ("qwen2_moe", {"mlp_only_layers": None}, {0, 1, 2, 3, 4, 5}),
    "dense layers first": ("deepseek_v3", {"first_k_dense_replace": 2}, {2, 3, 4, 5}),
    "none of them": ("deepseek_v3", {"first_k_dense_replace": 0}, {0, 1, 2, 3, 4, 5}),
    "only they": ("glm4_moe", {"first_k_dense_replace": 6}, set()),
    "more of them than layers": ("glm4_moe", {"first_k_dense_replace": 9}, set()),
    "every second": ("deepseek_v3", {"moe_layer_freq": 2, "first_k_dense_replace": 1}, {2, 4}),
    "a name for each": (
        "glm4_moe_lite",
        {"mlp_layer_types": ["sparse", "dense", "dense", "sparse", "dense", "sparse"]},
        {0, 3, 5},
    ),
    "from one on": ("ernie4_5_moe", {"moe_layer_start_index": 2}, {2, 3, 4, 5}),
    "from one to another": (
        "ernie4_5_moe",
        {"moe_layer_start_index": 2, "moe_layer_end_index": 4},
        {2, 3, 4},
    ),
    "every second, by Llama's key": ("llama4_text", {}, {1, 3, 5}),
    "those that are listed": ("llama4_text", {"moe_layers": [0, 3, 9]}, {0, 3}),
    "every second from one on": ("ernie4_5_moe", {"moe_layer_interval": 2}, {1, 3, 5}),
    "the last one is beyond the model": (
        "ernie4_5_moe",
        {"moe_layer_end_index": 99},
        {1, 2, 3, 4, 5},
    ),
    "every third": ("kimi_k2", {"moe_layer_freq": 3, "first_k_dense_replace": 0}, {0, 3}),
    "no experts": ("qwen3_moe", {"num_experts": 0}, set()),
    "a dense family": ("qwen3", {"num_experts": 8}, set()),
}


@pytest.mark.parametrize(("family", "changes", "moe"), LAYERS.values(), ids=LAYERS.keys())
def test_which_layers_have_experts(family, changes, moe):
    found = numbers(family, num_hidden_layers=6, **changes)
    assert found.moe == moe
    assert found.experts == (3 if moe else 0)


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("qwen3_moe", "num_experts"),
        ("deepseek_v3", "n_routed_experts"),
        ("mixtral", "num_local_experts"),
        ("ernie4_5_moe", "moe_num_experts"),
    ],
)
def test_number_of_experts_by_any_name(family, key):
    assert numbers(family, **{key: 7}).experts == 7


FLAGS = {
    "llama with biases": ("llama", {}, {"untied", "qkv_bias", "output_bias", "mlp_bias"}),
    "llama": ("llama", {"attention_bias": False, "mlp_bias": False}, {"untied"}),
    "llama, MLP only": ("llama", {"attention_bias": None}, {"untied", "mlp_bias"}),
    "tied llama": (
        "llama",
        {"tie_word_embeddings": True},
        {"qkv_bias", "output_bias", "mlp_bias"},
    ),
    "mistral": ("mistral", {"attention_bias": True}, {"untied"}),
    "qwen2": ("qwen2", {}, {"qkv_bias"}),
    "untied qwen2": ("qwen2", {"tie_word_embeddings": False}, {"untied", "qkv_bias"}),
    "who does not say": ("qwen2", {"tie_word_embeddings": None}, {"untied", "qkv_bias"}),
    "qwen3": ("qwen3", {}, {"untied", "qk_norm"}),
    "qwen3 with biases": (
        "qwen3",
        {"attention_bias": True},
        {"untied", "qk_norm", "qkv_bias", "output_bias"},
    ),
    "qwen2_moe": ("qwen2_moe", {}, {"untied", "qkv_bias"}),
    "qwen2_moe without biases": ("qwen2_moe", {"qkv_bias": False}, {"untied"}),
    "qwen3_moe": ("qwen3_moe", {}, {"untied", "qk_norm"}),
    "mixtral": ("mixtral", {}, {"untied"}),
    "deepseek_v3": ("deepseek_v3", {"attention_bias": True}, {"untied"}),
    "glm4_moe": ("glm4_moe", {}, {"untied", "qkv_bias", "qk_norm"}),
    "plain glm4_moe": ("glm4_moe", {"attention_bias": False, "use_qk_norm": False}, {"untied"}),
    "mimo": ("mimo", {}, {"untied", "qkv_bias"}),
    "dots1": ("dots1", {}, {"untied", "qk_norm"}),
    "deepseek_v2": ("deepseek_v2", {}, {"untied"}),
    "ernie4_5_moe": ("ernie4_5_moe", {}, {"untied"}),
    "ernie4_5_moe that does not say": ("ernie4_5_moe", {"tie_word_embeddings": None}, set()),
    "olmoe": ("olmoe", {}, {"untied", "wide_norms"}),
    "minimax_m2": ("minimax_m2", {}, {"untied", "wide_norms"}),
    "qwen2_5_vl": ("qwen2_5_vl", {}, {"untied", "qkv_bias"}),
    "gemma": ("gemma", {}, {"zero_centred", "gelu"}),
    "gemma2": ("gemma2", {}, {"zero_centred", "gelu", "post_norms"}),
    "gemma3": ("gemma3_text", {}, {"zero_centred", "gelu", "post_norms", "qk_norm"}),
    "exaone4": ("exaone4", {}, {"untied", "qk_norm", "post_norms", "only_post_norms"}),
    "nemotron": ("nemotron", {}, {"untied", "zero_centred", "layer_norm", "ungated"}),
}


@pytest.mark.parametrize(("family", "changes", "expected"), FLAGS.values(), ids=FLAGS.keys())
def test_flags_of_a_family(family, changes, expected):
    assert flags(family, **changes) == expected


def test_sizes_that_a_config_leaves_to_its_class():
    absent = ("vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    said = {key: value for key, value in config_of("gemma3_text").raw.items() if key not in absent}
    found = read_numbers(ModelConfig(Path("model"), said, {}))
    assert (found.vocab_size, found.heads, found.groups, found.head_dim) == (262208, 8, 4, 256)
    assert found.sizes["query"] == 2048


LATENT = {
    "low rank": (
        "deepseek_v3",
        {},
        {"latent", "low_query", "shared_experts", "expert_bias"},
    ),
    "whole query": (
        "deepseek_v3",
        {"q_lora_rank": None},
        {"latent", "plain_query", "shared_experts", "expert_bias"},
    ),
    "no shared experts": (
        "deepseek_v3",
        {"n_shared_experts": None},
        {"latent", "low_query", "expert_bias"},
    ),
    "grouped": ("glm4_moe", {}, {"plain_query", "shared_experts", "expert_bias"}),
    "no bias of the router": ("qwen2_moe", {}, {"plain_query", "shared_gate"}),
}


@pytest.mark.parametrize(("family", "changes", "expected"), LATENT.values(), ids=LATENT.keys())
def test_flags_that_any_family_may_have(family, changes, expected):
    assert numbers(family, **changes).flags & GENERAL == expected


def test_defaults_of_what_need_not_be_said():
    raw = {"model_type": "llama", **CONFIGS["llama"]}
    raw |= {"num_key_value_heads": None, "hidden_size": 24, "head_dim": None}
    found = read_numbers(ModelConfig(Path("model"), raw, {}))
    assert (found.groups, found.head_dim) == (4, 6)
    assert read_numbers(without("mistral", "head_dim")).head_dim == 1
    assert read_numbers(without("mimo", "num_nextn_predict_layers")).mtp == 0


def test_numbers_of_a_nested_config_come_from_its_text_part():
    text = {**CONFIGS["qwen2_5_vl"], "num_hidden_layers": 5}
    vision = text.pop("vision_config")
    raw = {"model_type": "qwen2_5_vl", "text_config": text, "vision_config": vision}
    found = read_numbers(ModelConfig(Path("model"), raw | {"hidden_size": 999}, {}))
    assert (found.layers, found.vision_layers) == (5, 2)


@pytest.mark.parametrize(
    ("multiple", "padded"), [(1, 11), (2, 12), (11, 11), (12, 12), (10, 20), (128, 128)]
)
def test_vocabulary_is_padded_to_a_multiple(multiple, padded):
    found = numbers("llama", multiple)
    assert (found.vocab_size, found.padded_vocab_size) == (11, padded)


REQUIRED = ["num_hidden_layers", "num_attention_heads", "vocab_size", "hidden_size"]


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(key):
    with pytest.raises(FormatError, match=f"{key} is None"):
        read_numbers(without("llama", key))


@pytest.mark.parametrize("value", ["3", 3.0, True, -1, [3], {}], ids=repr)
@pytest.mark.parametrize("key", [*REQUIRED, "num_key_value_heads", "head_dim"])
def test_a_key_that_is_no_size_is_named(key, value):
    with pytest.raises(FormatError, match=key):
        numbers("llama", **{key: value})


@pytest.mark.parametrize("value", ["3", 3.0, True, -1], ids=repr)
@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("qwen3_moe", "num_experts"),
        ("glm4_moe", "n_routed_experts"),
        ("mixtral", "num_local_experts"),
        ("mimo", "num_nextn_predict_layers"),
    ],
)
def test_a_number_of_experts_or_predictions_that_is_none_is_named(family, key, value):
    with pytest.raises(FormatError, match=key):
        numbers(family, **{key: value})


@pytest.mark.parametrize("vision", [None, {}, {"depth": 2}, {"num_heads": 2}, {"depth": "2"}])
def test_a_vision_tower_without_sizes_is_refused(vision):
    with pytest.raises(FormatError, match=r"vision_config\.(depth|num_heads)"):
        numbers("qwen2_5_vl", vision_config=vision)


LAYER_KEYS = ["decoder_sparse_step", "moe_layer_freq", "first_k_dense_replace"]


@pytest.mark.parametrize("value", ["2", 1.5, {"1": 0}], ids=repr)
@pytest.mark.parametrize("key", LAYER_KEYS)
def test_layers_not_said_in_numbers_are_refused(key, value):
    with pytest.raises(FormatError, match=f"{key} is .*, expected a size"):
        numbers("deepseek_v3", **{key: value})


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("qwen3_moe", "mlp_only_layers", 1),
        ("qwen3_moe", "mlp_only_layers", [[1]]),
        ("deepseek_v3", "first_k_dense_replace", -1),
        ("llama4_text", "moe_layers", "all"),
        ("qwen2_5_vl", "vision_config", "large"),
    ],
)
def test_other_values_of_a_wrong_kind_are_refused_by_name(family, key, value):
    with pytest.raises(FormatError, match=key):
        numbers(family, **{key: value})


@pytest.mark.parametrize("model_type", ["gpt2", "", "Llama"])
def test_an_unknown_family_lists_those_that_are_known(model_type):
    config = ModelConfig(Path("folder"), {"model_type": model_type}, {})
    with pytest.raises(MappingError, match=f"model_type '{model_type}'") as refused:
        require_rows(config)
    assert str(Path("folder") / "config.json") in refused.value.message
    assert all(family in refused.value.message for family in CONFIGS)
    with pytest.raises(MappingError, match="supported"):
        read_numbers(config)


def test_sizes_are_those_of_the_config():
    found = numbers("deepseek_v3").sizes
    assert found["two_hidden"] == 2 * found["hidden"]
    assert found["kv_down"] > found["kv_rank"]
    assert "vision" not in found


def test_what_qwen2_audio_leaves_out_is_its_class_default():
    text = {"model_type": "qwen2", "vocab_size": 156032, "intermediate_size": 11008}
    found = read_numbers(
        ModelConfig(Path("model"), {"model_type": "qwen2_audio", "text_config": text}, {})
    )
    assert (found.layers, found.heads, found.groups, found.head_dim) == (32, 32, 32, 128)


@pytest.mark.parametrize("changed", ["null", "absent"])
def test_null_is_what_the_class_has_where_it_is_left_out(changed):
    raw = config_of("gemma3_text").raw | {"num_attention_heads": None, "head_dim": None}
    raw |= {"vocab_size": None, "num_key_value_heads": None}
    if changed == "absent":
        raw = {key: value for key, value in raw.items() if value is not None}
    found = read_numbers(ModelConfig(Path("model"), raw, {}))
    assert (found.heads, found.groups, found.head_dim, found.vocab_size) == (8, 4, 256, 262208)


def test_ling_two_is_called_as_ling_one():
    """Released with the type of the first, and with all that the second has."""
    said = {"use_qk_norm": True, "moe_router_enable_expert_bias": True}
    changes = {"num_nextn_predict_layers": 1, "use_qkv_bias": True}
    one, two = (rules_of(name, **said, **changes) for name in ("bailing_moe", "bailing_moe_v2"))
    assert one.bindings == two.bindings
    assert one.numbers.flags == two.numbers.flags
    first = {name for each in rules_of("bailing_moe").bindings for name in each.hf}
    assert not [name for name in first if "layernorm" in name and "attention." in name]
    assert not [name for name in first if name.endswith("bias")]
