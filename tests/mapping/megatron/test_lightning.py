"""Ling 2.5: which layers have lightning attention, what becomes of it, and what Ling 3 is told.

Names of Megatron's are those of `gpts/bailing_hybrid.py` of mcore_bridge 1.6.5, written down once
more, and AReaL's those of its `models/mcore/bailing_moe_bridge.py`.
"""

import pytest
import torch

from ckpt_tool.common.errors import FormatError, MappingError
from ckpt_tool.mapping.megatron.convert import restore_model
from ckpt_tool.mapping.megatron.numbers import read_numbers
from tests.mapping.megatron.test_convert import converted, stored
from tests.support.megatron_models import config_of, hub_tensors, rules_of
from tests.support.saved import assert_equal
from tests.support.versions import TRANSFORMERS

FAMILY = "bailing_hybrid"
HEADS, HEAD = 4, 2
#: A layer with lightning attention in ms-swift, and what it is on the Hub.
NAMES = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.q_layernorm.weight": "attention.query_layernorm.weight",
    "self_attention.k_layernorm.weight": "attention.key_layernorm.weight",
    "self_attention.g_proj.weight": "attention.g_proj.weight",
    "self_attention.g_norm.weight": "attention.g_norm.weight",
    "self_attention.linear_proj.weight": "attention.dense.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
#: One with latent attention and experts, each of which is one tensor there.
LATENT = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.linear_q_down_proj.weight": "attention.q_a_proj.weight",
    "self_attention.linear_q_up_proj.layer_norm_weight": "attention.q_a_layernorm.weight",
    "self_attention.linear_q_up_proj.weight": "attention.q_b_proj.weight",
    "self_attention.linear_kv_down_proj.weight": "attention.kv_a_proj_with_mqa.weight",
    "self_attention.linear_kv_up_proj.layer_norm_weight": "attention.kv_a_layernorm.weight",
    "self_attention.linear_kv_up_proj.weight": "attention.kv_b_proj.weight",
    "self_attention.linear_proj.weight": "attention.dense.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.router.weight": "mlp.gate.weight",
    "mlp.router.expert_bias": "mlp.gate.expert_bias",
    "mlp.shared_experts.linear_fc2.weight": "mlp.shared_experts.down_proj.weight",
}
JOINED = {
    "mlp.experts.experts.linear_fc1.weight",
    "mlp.experts.experts.linear_fc2.weight",
    "mlp.shared_experts.linear_fc1.weight",
}
AHEAD = {name: name for name in (f"{n}.weight" for n in ("enorm", "hnorm", "eh_proj"))}
AHEAD["final_layernorm.weight"] = "final_layernorm.weight"
AREAL = {".g_proj.": ".linear_gate.", ".g_norm.": ".gate_norm."}


def as_areal(tensors: dict) -> dict:
    found = {}
    for name, tensor in tensors.items():
        for ours, theirs in AREAL.items():
            name = name.replace(ours, theirs)  # noqa: PLW2901
        found[name] = tensor
    return found


@pytest.mark.parametrize(
    ("layers", "every", "expected"),
    [
        (8, 4, "LLLALLLA"),
        (9, 4, "LLLALLLAA"),  # the rest
        (3, 4, "AAA"),
        (4, 1, "AAAA"),
        (5, 2, "LALAA"),
    ],
)
def test_which_layers_have_it(layers, every, expected):
    kinds = read_numbers(config_of(FAMILY, num_hidden_layers=layers, layer_group_size=every)).kinds
    letters = {"lightning_attention": "L", "full_attention": "A"}
    assert "".join(letters[kind] for kind in kinds) == expected


@pytest.mark.parametrize(
    "said", [{"layer_group_size": 0}, {"group_norm_size": 0}, {"group_norm_size": 3}], ids=str
)
def test_what_cannot_be_is_refused(said):
    with pytest.raises(MappingError, match=r"group_norm_size \d; expected numbers from 1 on"):
        read_numbers(config_of(FAMILY, **said))


@pytest.mark.parametrize("key", ["layer_group_size", "group_norm_size", "head_dim"])
def test_what_is_not_said_is_not_guessed(key):
    config = config_of(FAMILY)
    del config.raw[key]
    with pytest.raises(FormatError, match=key):
        read_numbers(config)


def test_every_tensor_is_called_as_in_ms_swift(tmp_path):
    hub = hub_tensors(FAMILY)
    found = converted(tmp_path, hub, rules_of(FAMILY))
    places = {
        ("decoder.layers.0.", "model.layers.0."): NAMES,
        ("decoder.layers.1.", "model.layers.1."): LATENT,
        ("decoder.layers.2.", "model.layers.2."): LATENT,
        ("mtp.layers.0.", "model.layers.3."): AHEAD,
        ("mtp.layers.0.transformer_layer.", "model.layers.3."): LATENT,
    }
    same = {
        "embedding.word_embeddings.weight": "model.word_embeddings.weight",
        "decoder.final_layernorm.weight": "model.norm.weight",
        "output_layer.weight": "lm_head.weight",
    }
    joined = {
        f"decoder.layers.0.{n}.weight" for n in ("self_attention.linear_qkv", "mlp.linear_fc1")
    }
    for (ours, theirs), names in places.items():
        same |= {ours + one: theirs + other for one, other in names.items()}
        joined |= {ours + name for name in JOINED} if names is LATENT else set()
    assert found.keys() == same.keys() | joined
    for key, name in same.items():
        assert torch.equal(found[key], hub[name]), key


def test_query_key_and_value_of_each_head_go_together(tmp_path):
    """Of as many heads each, whatever the config says of key heads."""
    hub = hub_tensors(FAMILY)
    assert config_of(FAMILY).raw["num_key_value_heads"] < HEADS
    both = hub["model.layers.0.attention.query_key_value.weight"]
    rows = []
    for head in range(HEADS):
        for part in range(3):
            at = (part * HEADS + head) * HEAD
            rows.append(both[at : at + HEAD])
    found = converted(tmp_path, hub, rules_of(FAMILY))
    assert torch.equal(found["decoder.layers.0.self_attention.linear_qkv.weight"], torch.cat(rows))


def test_what_areal_saves_is_read(tmp_path):
    hub = hub_tensors(FAMILY)
    theirs = as_areal(converted(tmp_path, hub, rules_of(FAMILY)))
    gates = [name for name in theirs if "linear_gate" in name or "gate_norm" in name]
    assert len(gates) == 2
    restored = restore_model(stored(tmp_path, theirs, "theirs"), config_of(FAMILY))
    assert_equal(restored.tensors, hub)


def test_a_part_of_a_norm_that_areal_saves_is_refused(tmp_path):
    """Of several tensor-parallel ranks each has its part, and the first one's is saved."""
    theirs = as_areal(converted(tmp_path, hub_tensors(FAMILY), rules_of(FAMILY)))
    norm = "decoder.layers.0.self_attention.gate_norm.weight"
    theirs[norm] = theirs[norm][: HEADS * HEAD // 2].clone()
    with pytest.raises(MappingError) as refused:
        restore_model(stored(tmp_path, theirs, "theirs"), config_of(FAMILY))
    assert [name.partition(":")[0] for name in refused.value.names] == [norm]
    assert "[4]" in str(refused.value.names)
    assert "[8]" in str(refused.value.names)


@pytest.mark.skipif(TRANSFORMERS < (5, 24), reason="the first that has Ling 3")
def test_ling_3_has_the_same_model_type_and_is_told_so():
    import transformers

    raw = transformers.BailingHybridConfig().to_dict()
    config = config_of(FAMILY)
    config.raw.clear()
    config.raw.update(raw)
    with pytest.raises(MappingError, match="Ling 3, whose layers have Kimi delta attention"):
        read_numbers(config)
