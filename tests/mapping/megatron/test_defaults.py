"""What a config leaves to its class counts where nobody says it, by whichever name."""

from pathlib import Path

import pytest

from ckpt_tool.common.errors import FormatError
from ckpt_tool.mapping.config import EXPERT_KEYS, MTP_KEYS, ModelConfig
from ckpt_tool.mapping.families.table import FAMILIES
from ckpt_tool.mapping.megatron.numbers import read_numbers
from ckpt_tool.mapping.megatron.sizes import SHARED_KEYS
from tests.support.megatron_parts import DECODER

#: Names of one thing.
NAMES = (
    EXPERT_KEYS,
    MTP_KEYS,
    SHARED_KEYS,
    ("num_key_value_heads", "num_attention_groups"),
    ("head_dim", "attention_head_dim"),
    ("first_k_dense_replace", "moe_layer_start_index"),
)
BASE = DECODER | {
    "num_hidden_layers": 6,
    "num_experts": 4,
    "moe_intermediate_size": 5,
    "kv_lora_rank": 2,
}
OWN = {
    "nemotron_h": {"hybrid_override_pattern": "*E-*E-"},
    "ernie4_5_vl_moe": {"moe_intermediate_size": [5, 3]},
    "ernie4_5_moe_vl": {"moe_intermediate_size": [5, 3]},
    "qwen2_audio": {"model_type": "qwen2"},
}
CASES = [
    (family, key, other)
    for family, row in FAMILIES.items()
    for key in (row.megatron.defaults if row.megatron else ())
    for names in NAMES
    for other in names
    if key in names and key != other
]


def config_of(family: str, *left_out: str, **said: int) -> ModelConfig:
    text = {key: value for key, value in BASE.items() if key not in left_out}
    text |= {"model_type": family} | OWN.get(family, {}) | said
    raw = {"model_type": family, "text_config": text} if family == "qwen2_audio" else text
    return ModelConfig(Path("m"), raw, {})


def test_there_are_such_families():
    assert {family for family, *_ in CASES} >= {"deepseek_v4", "ernie4_5_vl_moe", "gemma3_text"}


@pytest.mark.parametrize(("family", "key", "other"), CASES)
def test_a_default_gives_way_to_another_name_of_the_same(family, key, other):
    expected = read_numbers(config_of(family, key, other, **{key: 5}))
    assert read_numbers(config_of(family, key, other, **{other: 5})) == expected
    assert read_numbers(config_of(family, key, other)) != expected
    with pytest.raises(FormatError, match="another name for it"):
        read_numbers(config_of(family, **{key: 5, other: 7}))
