"""Whole models from one side to the other and back, and what is refused."""

from pathlib import Path

import pytest
import torch

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.megatron.bindings import LAYOUTS
from ckpt_tool.mapping.megatron.convert import from_megatron, restore_model, to_megatron
from ckpt_tool.mapping.megatron.rules import Rules, make_rules
from ckpt_tool.readers import Checkpoint
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.lazy import LazyTensor
from tests.support.backed import same
from tests.support.megatron_models import (
    CASES,
    GATED,
    config_of,
    hub_tensors,
    rules_of,
    whole,
)
from tests.support.saved import assert_equal, write_tensors

Tensors = dict[str, torch.Tensor]


def stored(folder: Path, tensors: Tensors, name: str = "hub") -> Checkpoint:
    return write_tensors(folder / f"{name}.safetensors", tensors)


def converted(folder: Path, tensors: Tensors, rules: Rules) -> Tensors:
    sharded = to_megatron(stored(folder, tensors), rules)
    return {name: whole(tensor) for name, tensor in sharded.items()}


def refused(tensors: dict[str, LazyTensor], rules: Rules, convert=to_megatron) -> MappingError:
    with pytest.raises(MappingError) as caught:
        convert(tensors, rules)
    return caught.value


@pytest.mark.parametrize(("family", "layout", "changes"), CASES, ids=str)
@pytest.mark.parametrize("multiple", [1, 8])
def test_there_and_back_is_where_it_began(family, layout, changes, multiple, tmp_path):
    tensors = hub_tensors(family, **changes)
    rules = rules_of(family, layout, multiple, **changes)
    assert (rules.layout, rules.warnings) == (layout, [])
    sharded = to_megatron(stored(tmp_path, tensors), rules)
    used = [source for tensor in sharded.values() for source in tensor.sources]
    assert sorted(set(used)) == sorted(tensors)
    assert family in GATED or len(used) == len(tensors)
    there = {name: whole(tensor) for name, tensor in sharded.items()}
    norms = [name for name in there if name.endswith("out_norm.weight")]  # less one
    more = there | {name: there[name] + 1 for name in norms}
    values = torch.cat([tensor.flatten() for tensor in more.values()])
    count = sum(tensor.numel() for tensor in tensors.values())
    assert values[values > 0].sort().values.tolist() == list(range(1, count + 1))
    assert_equal(from_megatron(stored(tmp_path, there, "mcore"), rules), tensors)


def fused(tensors: Tensors, stem: str, kind: str = "weight") -> torch.Tensor:
    q, k, v = (tensors[f"{stem}.self_attn.{n}_proj.{kind}"] for n in "qkv")
    return torch.cat([part.unflatten(0, (2, -1)) for part in (q, k, v)], 1).flatten(0, 1)


def test_a_dense_model_by_torch(tmp_path):
    hub = hub_tensors("llama")
    found = converted(tmp_path, hub, rules_of("llama", vocab_multiple=4))

    def stacked(name: str) -> torch.Tensor:
        return torch.stack([hub[f"model.layers.{layer}.{name}"] for layer in range(3)])

    padding, qkv = torch.zeros(1, 6), "decoder.layers.self_attention.linear_qkv."
    expected = {
        "embedding.word_embeddings.weight": torch.cat([hub["model.embed_tokens.weight"], padding]),
        "output_layer.weight": torch.cat([hub["lm_head.weight"], padding]),
        "decoder.final_layernorm.weight": hub["model.norm.weight"],
    }
    for name, of in {
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
        "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
        "self_attention.linear_proj.bias": "self_attn.o_proj.bias",
        "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
        "mlp.linear_fc2.weight": "mlp.down_proj.weight",
        "mlp.linear_fc2.bias": "mlp.down_proj.bias",
    }.items():
        expected[f"decoder.layers.{name}"] = stacked(of)
    for kind in ("weight", "bias"):
        parts = [fused(hub, f"model.layers.{layer}", kind) for layer in range(3)]
        expected[f"{qkv}{kind}"] = torch.stack(parts)
        gated = [stacked(f"mlp.{n}_proj.{kind}") for n in ("gate", "up")]
        expected[f"decoder.layers.mlp.linear_fc1.{kind}"] = torch.cat(gated, 1)
    assert found.keys() == expected.keys()
    assert not [name for name in found if not same(found[name], expected[name])]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_experts_by_torch(layout, tmp_path):
    hub = hub_tensors("qwen3_moe")
    found = converted(tmp_path, hub, rules_of("qwen3_moe", layout))

    def expert(layer: int, number: int) -> torch.Tensor:
        stem = f"model.layers.{layer}.mlp.experts.{number}"
        return torch.cat([hub[f"{stem}.{n}_proj.weight"] for n in ("gate", "up")])

    layers = [torch.stack([expert(layer, n) for n in range(3)]) for layer in range(3)]
    step, first = (2, 1) if layout == "hybrid" else (1, 0)
    expected = {f"decoder.layers.{step * i + first}.": each for i, each in enumerate(layers)}
    if layout == "stacked":
        expected = {"decoder.layers.": torch.stack(layers)}
    for name, experts in expected.items():
        assert same(found[f"{name}mlp.experts.experts.linear_fc1.weight"], experts)


def test_prediction_layer_of_mimo_by_torch(tmp_path):
    hub = hub_tensors("mimo")
    found = converted(tmp_path, hub, rules_of("mimo"))
    stem = "model.mtp_layers.1"
    left, right = hub[f"{stem}.input_proj.weight"].chunk(2, 1)
    assert same(found["mtp.layers.1.eh_proj.weight"], torch.cat([right, left], 1))
    name = "mtp.layers.1.transformer_layer.self_attention.linear_qkv.weight"
    assert same(found[name], fused(hub, stem))


def test_missing_and_unexpected_tensors_are_all_listed(tmp_path):
    tensors = hub_tensors("qwen3_moe")
    gone = ["model.layers.1.mlp.experts.2.up_proj.weight", "model.norm.weight"]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in gone}
    extra = ["model.layers.3.mlp.gate.weight", "model.layers.0.self_attn.q_proj.bias"]
    tensors |= {name: torch.ones(2) for name in extra}
    error = refused(stored(tmp_path, tensors), rules_of("qwen3_moe"))
    assert sorted(error.names) == sorted(
        [f"missing: {name}" for name in gone] + [f"unexpected: {name}" for name in extra]
    )
    assert "2 missing and 2 unexpected tensors for a qwen3_moe of 3 layers" in error.message


def test_names_of_a_base_class_are_told_from_other_strangers(tmp_path):
    """As `Qwen3Model` is saved, and embedding models are released."""
    tensors = hub_tensors("qwen2")
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    error = refused(stored(tmp_path, bare), rules_of("qwen2"))
    assert "AutoModelForCausalLM" in error.hint
    error = refused(stored(tmp_path, bare | {"other": torch.ones(2)}), rules_of("qwen2"))
    assert "of different models" in error.hint


def test_misshapen_tensors_are_all_listed(tmp_path):
    tensors = hub_tensors("llama")
    stem = "model.layers.1"
    for name in ("model.embed_tokens", f"{stem}.self_attn.k_proj", f"{stem}.mlp.up_proj"):
        tensors[f"{name}.weight"] = torch.ones(3, 6)
    rules = rules_of("llama")
    error = refused(stored(tmp_path, tensors), rules)
    assert f"3 tensors are not what {rules.config.folder / 'config.json'} says" in error.message
    qkv = ", ".join(f"{stem}.self_attn.{n}_proj.weight" for n in "qkv")
    assert error.names[0] == "model.embed_tokens.weight: [3, 6], expected 11 rows (vocab_size)"
    assert error.names[1].startswith(f"{qkv}: query, key and value are [8, 6], [3, 6], [4, 6],")
    assert error.names[2].endswith(
        "up_proj.weight: gate is [5, 6] and up [3, 6], expected rows, and one shape"
    )


def test_layers_and_experts_of_different_shapes_are_all_listed(tmp_path):
    tensors = hub_tensors("qwen3_moe")
    odd = [
        "model.layers.2.self_attn.o_proj.weight",
        "model.layers.1.mlp.experts.2.down_proj.weight",
    ]
    tensors |= {name: torch.ones(2, 2) for name in odd}
    error = refused(stored(tmp_path, tensors), rules_of("qwen3_moe"))
    assert sorted(name.split(":")[0] for name in error.names) == sorted(odd)
    assert all("[2, 2], expected [6, " in name for name in error.names)
    per_layer = refused(stored(tmp_path, tensors), rules_of("qwen3_moe", "per-layer"))
    assert per_layer.names == error.names


def test_tensors_of_two_dtypes_are_all_listed(tmp_path):
    tensors = hub_tensors("mistral")
    for name in ("model.layers.1.self_attn.o_proj.weight", "model.layers.0.mlp.up_proj.weight"):
        tensors[name] = tensors[name].to(torch.bfloat16)
    error = refused(stored(tmp_path, tensors), rules_of("mistral"))
    assert error.names == (
        "model.layers.0.mlp.gate_proj.weight, model.layers.0.mlp.up_proj.weight:"
        " of float32 and bfloat16; choose one with `dtype`",
    )


def test_layers_of_two_dtypes_are_refused(tmp_path):
    tensors = hub_tensors("mistral")
    name = "model.layers.1.self_attn.o_proj.weight"
    tensors[name] = tensors[name].to(torch.bfloat16)
    error = refused(stored(tmp_path, tensors), rules_of("mistral"))
    assert error.names == (
        "decoder.layers.self_attention.linear_proj.weight:"
        " made of tensors of bfloat16 and float32; choose one with `dtype`",
    )


KEY = "model.layers.1.self_attn.k_proj.weight"


def test_query_and_key_of_two_dtypes_are_refused(tmp_path):
    tensors = hub_tensors("mistral")
    tensors[KEY] = tensors[KEY].to(torch.bfloat16)
    refused(stored(tmp_path, tensors), rules_of("mistral"))


def test_query_and_key_of_two_dtypes_on_disk_are_joined_once_they_are_cast(tmp_path):
    hub = hub_tensors("mistral")
    mixed = hub | {KEY: hub[KEY].to(torch.bfloat16)}
    cast = {name: tensor.to(FLOAT32) for name, tensor in stored(tmp_path, mixed).items()}
    sharded = to_megatron(cast, rules_of("mistral"))
    found = whole(sharded["decoder.layers.self_attention.linear_qkv.weight"])
    assert same(found[1], fused({n: t.float() for n, t in mixed.items()}, "model.layers.1"))


def test_a_tensor_of_another_dtype_stays_what_it_is(tmp_path):
    tensors = hub_tensors("deepseek_v3")
    tensors |= {n: t.bfloat16() for n, t in tensors.items() if not n.endswith("_bias")}
    sharded = to_megatron(stored(tmp_path, tensors), rules_of("deepseek_v3"))
    kept = {name for name, tensor in sharded.items() if tensor.dtype == FLOAT32}
    assert kept == {name for name in sharded if name.endswith("expert_bias")}


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "kimi_k2", "glm4_moe"])
def test_layers_that_differ_are_not_stacked(family):
    with pytest.raises(MappingError, match="some layers have experts and some have not"):
        rules_of(family, "stacked")


@pytest.mark.parametrize(("family", "count"), [("deepseek_v3", 1), ("mimo", 2)])
def test_a_model_without_its_prediction_layers_is_converted_with_a_warning(family, count, tmp_path):
    tensors = hub_tensors(family, num_nextn_predict_layers=0)
    rules = make_rules(config_of(family), tensors)
    assert len(rules.warnings) == 1
    assert f"{count_noun(count, 'layer')} for multi-token prediction" in rules.warnings[0]
    assert rules.repeats == []
    there = converted(tmp_path, tensors, rules)
    assert not [name for name in there if name.startswith("mtp.")]
    assert_equal(from_megatron(stored(tmp_path, there, "mcore"), rules), tensors)


def test_a_part_of_the_prediction_layers_is_a_model_with_missing_tensors(tmp_path):
    tensors = hub_tensors("mimo")
    gone = [name for name in tensors if "mtp_layers.1." in name]
    kept = {name: tensor for name, tensor in tensors.items() if name not in gone}
    error = refused(stored(tmp_path, kept), make_rules(config_of("mimo"), kept))
    assert sorted(error.names) == sorted(f"missing: {name}" for name in gone)


def test_other_megatron_keys_are_all_listed_on_the_way_back(tmp_path):
    rules = rules_of("llama")
    tensors = converted(tmp_path, hub_tensors("llama"), rules)
    tensors.pop("decoder.final_layernorm.weight")
    tensors["decoder.layers.mlp.router.weight"] = torch.ones(2)
    error = refused(stored(tmp_path, tensors, "mcore"), rules, from_megatron)
    assert error.names == (
        "missing: decoder.final_layernorm.weight",
        "unexpected: decoder.layers.mlp.router.weight",
    )


def test_other_megatron_shapes_are_all_listed_on_the_way_back(tmp_path):
    rules = rules_of("qwen3_moe")
    tensors = converted(tmp_path, hub_tensors("qwen3_moe"), rules)
    layers = "decoder.layers."
    changes = {
        "embedding.word_embeddings.weight": (10, 6),
        f"{layers}self_attention.linear_qkv.weight": (3, 15, 6),
        f"{layers}self_attention.linear_proj.weight": (2, 6, 8),
        f"{layers}mlp.experts.experts.linear_fc1.weight": (3, 2, 8, 6),
        f"{layers}mlp.router.weight": (),
    }
    tensors |= {name: torch.ones(shape) for name, shape in changes.items()}
    error = refused(stored(tmp_path, tensors, "mcore"), rules, from_megatron)
    assert {name.split(" [")[0] for name in error.names} == changes.keys()
    assert f"{layers}self_attention.linear_proj.weight [2, 6, 8]: expected [3]" in str(error.names)
    assert "linear_fc1.weight [3, 2, 8, 6]: expected [3, 3]" in str(error.names)


def test_a_tower_of_which_nothing_is_there_is_missed(tmp_path):
    """Names alone say no more: which tensors a tower has, its class knows."""
    tensors = hub_tensors("mistral3")
    there = converted(tmp_path, tensors, rules_of("mistral3"))
    rest = {name: t for name, t in tensors.items() if not name.startswith("multi_modal_projector.")}
    with pytest.raises(MappingError, match=r"multi_modal_projector\.: none of their tensors"):
        make_rules(config_of("mistral3"), rest)
    del there["multi_modal_projector.linear_1.weight"]
    with pytest.raises(MappingError, match=r"multi_modal_projector\.: none of their tensors"):
        restore_model(stored(tmp_path, there, "mcore"), config_of("mistral3"))
