"""Megatron tensors in other spellings than the tables', found and brought back."""

import re

import pytest
import torch

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.megatron.convert import restore_model
from ckpt_tool.mapping.megatron.keys import is_megatron, name_engine_keys, unify_keys
from tests.mapping.megatron.test_convert import converted, stored
from tests.support.megatron_models import CASES, config_of, hub_tensors, rules_of
from tests.support.saved import assert_equal

#: Transformer Engine's names that are others in the per-rank files of local layers.
LOCAL = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_q_up_proj.layer_norm_weight": "self_attention.q_layernorm.weight",
    "self_attention.linear_kv_up_proj.layer_norm_weight": "self_attention.kv_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


def locally(name: str) -> str:
    for engine, local in LOCAL.items():
        name = name.replace(engine, local)
    return name


@pytest.mark.parametrize(("family", "layout", "changes"), CASES, ids=str)
def test_the_rules_are_found_from_the_tensors(family, layout, changes, tmp_path):
    tensors = hub_tensors(family, **changes)
    rules = rules_of(family, layout, 8, **changes)
    there = converted(tmp_path, tensors, rules)
    config = config_of(family, **changes)
    model = restore_model(stored(tmp_path, there, "mcore"), config)
    assert_equal(model.tensors, tensors)
    assert model.dropped
    assert all(why.startswith("5 rows of padding") for why in model.dropped.values())
    repeated = {name: tensors[repeat.of] for repeat in rules.repeats for name in (repeat.hf,)}
    assert_equal(model.repeats, repeated)
    other = {locally(name): tensor for name, tensor in there.items()}
    assert_equal(restore_model(stored(tmp_path, other, "local"), config).tensors, tensors)


def test_norms_of_all_heads_together_by_the_names_of_other_trainers(tmp_path):
    tensors = hub_tensors("olmoe")
    there = converted(tmp_path, tensors, rules_of("olmoe", "per-layer"))
    other = {re.sub(r"\.([qk])_layernorm\.", r".\1_norm.", name): t for name, t in there.items()}
    assert len(other.keys() - there.keys()) == 6
    found = restore_model(stored(tmp_path, other, "other"), config_of("olmoe"))
    assert_equal(found.tensors, tensors)


def test_only_families_whose_files_have_copies_get_them():
    assert {repeat.hf for repeat in rules_of("deepseek_v3").repeats} == {
        "model.layers.3.embed_tokens.weight",
        "model.layers.3.shared_head.head.weight",
    }
    assert rules_of("mimo").repeats == []


def test_experts_gate_and_up_of_their_own(tmp_path):
    """What `singleton_local_shards` does, by hand."""
    tensors = hub_tensors("qwen3_moe")
    there = converted(tmp_path, tensors, rules_of("qwen3_moe", "per-layer"))
    alone = {}
    for name, tensor in there.items():
        matched = re.fullmatch(r"(.*experts\.experts\.)(.*)", name)
        for number in range(len(tensor)) if matched else ():
            key = f"{matched[1]}{number}.{matched[2]}"
            if "linear_fc1" in key:
                alone[f"{key}_w"], alone[f"{key}_v"] = tensor[number].chunk(2)
            else:
                alone[key] = tensor[number]
        if not matched:
            alone[name] = tensor
    saved = {name: tensor.clone() for name, tensor in alone.items()}
    assert_equal(
        restore_model(stored(tmp_path, saved, "alone"), config_of("qwen3_moe")).tensors, tensors
    )


@pytest.mark.parametrize(
    ("fc1", "fc2"),
    [
        ("local_experts.{}.linear_fc1.weight_{}", "local_experts.{}.linear_fc2.weight"),
        ("linear_fc1.weight{}_{}", "linear_fc2.weight{}"),
    ],
)
@pytest.mark.parametrize("layer", ["decoder.layers.11", "mtp.layers.0.mtp_model_layer"])
def test_experts_as_megatron_fsdp_numbers_them(fc1, fc2, layer, tmp_path):
    """Of the local layers and of Transformer Engine's, with more than nine experts."""
    prefix = f"model.module.{layer}.mlp.experts."
    saved = {}
    for number in range(11):
        saved[prefix + fc1.format(number, "w")] = torch.full((2, 3), number)
        saved[prefix + fc1.format(number, "v")] = torch.full((2, 3), -number)
        saved[prefix + fc2.format(number)] = torch.full((3, 2), 100 + number)
    found = unify_keys(stored(tmp_path, saved))
    own = f"{layer}.mlp.experts.experts.".replace("mtp_model_layer", "transformer_layer")
    assert set(found) == {f"{own}linear_fc1.weight", f"{own}linear_fc2.weight"}
    numbers = torch.arange(11)
    first = found[f"{own}linear_fc1.weight"].read()
    assert torch.equal(first[:, :, 0], torch.stack([numbers] * 2 + [-numbers] * 2, 1))
    assert torch.equal(found[f"{own}linear_fc2.weight"].read()[:, 0, 0], 100 + numbers)


def test_the_norm_of_one_down_projection_is_the_layers(tmp_path):
    tensors = hub_tensors("deepseek_v3")
    there = converted(tmp_path, tensors, rules_of("deepseek_v3"))
    fused = "self_attention.linear_qkv_down_proj.layer_norm_weight"
    other = {re.sub(r"\binput_layernorm.weight", fused, name): it for name, it in there.items()}
    assert sum(name.endswith(fused) for name in other) == 4
    found = restore_model(stored(tmp_path, other, "fused"), config_of("deepseek_v3"))
    assert_equal(found.tensors, tensors)


@pytest.mark.parametrize(("family", "says"), [("deepseek_v3", True), ("mixtral", False)])
def test_norms_that_megatron_core_forgets_are_said_to_be_lost(family, says, tmp_path):
    """0.17 and 0.18 do not save those of one down projection."""
    there = converted(tmp_path, hub_tensors(family), rules_of(family, "per-layer"))
    norms = ("input_layernorm.weight", "linear_qkv.layer_norm_weight")
    kept = {name: tensor for name, tensor in there.items() if not name.endswith(norms)}
    with pytest.raises(MappingError, match="missing") as caught:
        restore_model(stored(tmp_path, kept, "lost"), config_of(family))
    assert ("0.17 and 0.18" in caught.value.hint) == says
    some = {name: tensor for name, tensor in kept.items() if "embedding" not in name}
    with pytest.raises(MappingError, match="missing") as caught:
        restore_model(stored(tmp_path, some, "more"), config_of(family))
    assert "0.17" not in caught.value.hint


def test_two_keys_that_mean_one_are_refused(tmp_path):
    names = ("decoder.final_layernorm.weight", "module.decoder.final_layernorm.weight")
    with pytest.raises(MappingError, match="1 tensor gets a name that") as refused:
        unify_keys(stored(tmp_path, {name: torch.ones(2) for name in names}))
    assert refused.value.names == (f"{names[1]}: also {names[0]}",)


def test_a_vision_tower_keeps_its_name_and_its_language_model_too():
    names = ["vision_model.decoder.layers.0.input_layernorm.weight", "language_model.mtp.x"]
    found = name_engine_keys(names)
    assert found[names[0]] == (
        "vision_model.decoder.layers.0.self_attention.linear_qkv.layer_norm_weight"
    )
    assert found[names[1]] == names[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embedding.word_embeddings.weight", True),
        ("module.embedding.word_embeddings.weight", True),
        ("decoder.layers.3.self_attention.linear_proj.weight", True),
        ("decoder.layers.mlp.linear_fc2.weight", True),
        ("decoder.layers.mlp.shared_experts.linear_fc1.lora_A.default.weight", True),
        ("decoder.layers.1.mlp.experts.experts.linear_fc1.lora_B.default.weight", True),
        ("bert.embeddings.word_embeddings.weight", False),
        ("model.decoder.layers.0.fc1.weight", False),
        ("model.embed_tokens.weight", False),
    ],
)
def test_what_is_named_as_megatron_names_it(name, expected):
    assert is_megatron([name]) is expected
