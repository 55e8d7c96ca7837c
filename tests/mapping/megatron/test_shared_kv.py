"""What a config of Gemma 4 says of its layers, as released and as transformers writes it."""

from pathlib import Path
from typing import Any

import pytest

from ckpt_tool.common.errors import CkptError, MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.megatron.numbers import Numbers, read_numbers
from ckpt_tool.mapping.megatron.rules import make_rules
from ckpt_tool.mapping.megatron.shared_kv import keep_given

S, F = "sliding_attention", "full_attention"
CONFIG: dict[str, Any] = {
    "model_type": "gemma4_text",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 12,
    "vocab_size": 30,
    "layer_types": [S, S, F, S, S, F],
}
EXPERTS = {
    "enable_moe_block": True,
    "num_experts": 4,
    "moe_intermediate_size": 6,
    "hidden_size_per_layer_input": 0,
}


def config_of(**changes: Any) -> ModelConfig:
    return ModelConfig(Path("model"), CONFIG | changes, {})


def read(**changes: Any) -> Numbers:
    return read_numbers(config_of(**changes))


def heads(numbers: Numbers) -> list[tuple[int, int]]:
    return [(block.groups, block.head_dim) for block in numbers.blocks]


def test_every_sixth_layer_is_global_where_nothing_is_said_and_the_last_always_is():
    kinds = read(layer_types=None, num_hidden_layers=8).kinds
    assert kinds == (S, S, S, S, S, F, S, F)
    assert read(layer_types=[F, S, S, S, S, S]).kinds == (F, S, S, S, S, F)


def test_global_layers_have_heads_of_their_own():
    assert heads(read()) == [(2, 8), (2, 8), (2, 12)] * 2
    tied = read(attention_k_eq_v=True, num_global_key_value_heads=1)
    assert heads(tied) == [(2, 8), (2, 8), (1, 12)] * 2
    assert tied.kinds == (S, S, f"{F}, keys as values") * 2
    assert heads(read(num_global_key_value_heads=1)) == [(2, 8), (2, 8), (2, 12)] * 2
    assert heads(read(global_head_dim=None))[2] == (2, 512)


def test_transformers_says_it_layer_by_layer():
    own = {str(layer): {"head_dim": 10, "num_key_value_heads": 1} for layer in (2, 5)}
    said = {"per_layer_config": own, "attention_k_eq_v": True}
    assert heads(read(**said)) == [(2, 8), (2, 8), (1, 10)] * 2
    with pytest.raises(MappingError, match=r"layers of the kind full_attention have other heads"):
        read(per_layer_config={"2": {"head_dim": 10}})
    with pytest.raises(CkptError, match="not a JSON object"):
        read(per_layer_config={"2": 10})


def test_the_last_layers_share_keys_and_may_be_twice_as_wide():
    found = read(num_kv_shared_layers=3, use_double_wide_mlp=True, attention_k_eq_v=True)
    shared = (f"{S}, shared", f"{S}, shared", f"{F}, shared")
    assert found.kinds == (S, S, f"{F}, keys as values", *shared)
    assert [block.ffn for block in found.blocks] == [24] * 3 + [48] * 3
    assert [block.ffn for block in read(num_kv_shared_layers=3).blocks] == [24] * 6


def test_layers_with_experts_are_all_or_none():
    assert read(**EXPERTS).moe == set(range(6))
    assert read(num_experts=4).moe == set()
    assert read(**EXPERTS | {"enable_moe_block": False}).moe == set()


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"layer_types": [S, F]}, r"expected .* for each of 6 layers"),
        ({"layer_types": [S, S, "linear_attention", S, S, F]}, r"linear_attention"),
        ({"num_kv_shared_layers": 4}, "num_kv_shared_layers is 4 of 6 layers"),
        ({"num_kv_shared_layers": 9}, "num_kv_shared_layers is 9 of 6 layers"),
        ({"layer_types": [], "num_hidden_layers": 0, "num_kv_shared_layers": 2**31 - 1}, "of 0"),
        ({"num_kv_shared_layers": 6}, "no earlier layer of their kind"),
        (EXPERTS | {"num_kv_shared_layers": 3}, "num_kv_shared_layers is 3 beside enable_moe"),
        (EXPERTS | {"hidden_size_per_layer_input": 4}, "hidden_size_per_layer_input is 4 beside"),
        (EXPERTS | {"num_experts": None}, "there is no num_experts"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(said, match):
    with pytest.raises(MappingError, match=match):
        read(**said)


@pytest.mark.parametrize(
    ("layout", "said", "match"),
    [
        ("stacked", {"num_kv_shared_layers": 3, "use_double_wide_mlp": True}, "sizes of their own"),
        ("hybrid", {}, "norms beside attention and MLP"),
    ],
)
def test_layouts_that_these_layers_cannot_have(layout, said, match):
    names = [f"model.layers.{number}.x" for number in range(99)]
    with pytest.raises(MappingError, match=match):
        make_rules(config_of(**said), names, layout)


@pytest.mark.parametrize(
    ("kind", "names", "expected"),
    [
        (f"{F}, shared", "kv", F),
        (f"{F}, shared", "k", f"{F}, keys as values"),
        (f"{F}, shared", "", f"{F}, shared"),
        (f"{S}, shared", "kv", S),
        (F, "kv", F),
    ],
)
def test_layers_that_have_keys_keep_them(kind: str, names: str, expected: str) -> None:
    """Released layers that share keys may have some of their own, and global ones no values."""
    given = [f"model.layers.1.self_attn.{name}_proj.weight" for name in names]
    assert keep_given((S, kind), "model.", given) == (S, expected)
