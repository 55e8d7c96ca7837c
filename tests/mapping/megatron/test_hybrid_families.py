"""Families whose layers are those of a HybridModel: Nemotron-H and Falcon-H1, by hand and back."""

import re
from pathlib import Path

import pytest
import torch

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.families.table import FAMILIES
from ckpt_tool.mapping.megatron.convert import from_megatron, restore_model, to_megatron
from ckpt_tool.mapping.megatron.extra_state import list_extra_states
from ckpt_tool.mapping.megatron.numbers import read_numbers
from ckpt_tool.mapping.megatron.rules import Rules, make_rules
from ckpt_tool.mapping.megatron.training_args import make_args
from tests.support.megatron_hybrid_models import HYBRIDS, config_of, hub_shapes, hub_tensors
from tests.support.megatron_models import whole
from tests.support.saved import assert_equal, write_tensors

#: What Megatron-Bridge 0.6.2 calls the tensors: Megatron's, and those of the Hub, both without what
#: is before the names of layers.
BRIDGES = {
    "nemotron_h": """
mlp.linear_fc1.weight | mixer.up_proj.weight
mlp.linear_fc2.weight | mixer.down_proj.weight
self_attention.linear_proj.weight | mixer.o_proj.weight
decoder.final_norm.weight | backbone.norm_f.weight
mixer.in_proj.layer_norm_weight | norm.weight
mlp.linear_fc1.layer_norm_weight | norm.weight
self_attention.linear_qkv.layer_norm_weight | norm.weight
pre_mlp_layernorm.weight | norm.weight
embedding.word_embeddings.weight | backbone.embeddings.weight
output_layer.weight | lm_head.weight
mlp.router.weight | mixer.gate.weight
mlp.router.expert_bias | mixer.gate.e_score_correction_bias
mlp.fc1_latent_proj.weight | mixer.fc1_latent_proj.weight
mlp.fc2_latent_proj.weight | mixer.fc2_latent_proj.weight
mlp.shared_experts.linear_fc1.weight | mixer.shared_experts.up_proj.weight
mlp.shared_experts.linear_fc2.weight | mixer.shared_experts.down_proj.weight
mlp.experts.linear_fc1.weight* | mixer.experts.*.up_proj.weight
mlp.experts.linear_fc2.weight* | mixer.experts.*.down_proj.weight
mixer.A_log | mixer.A_log
mixer.D | mixer.D
mixer.dt_bias | mixer.dt_bias
mixer.norm.weight | mixer.norm.weight
mixer.out_proj.weight | mixer.out_proj.weight
mixer.in_proj.weight | mixer.in_proj.weight
mixer.conv1d.weight | mixer.conv1d.weight
mixer.conv1d.bias | mixer.conv1d.bias
self_attention.linear_qkv.weight | mixer.q_proj.weight
self_attention.linear_qkv.weight | mixer.k_proj.weight
self_attention.linear_qkv.weight | mixer.v_proj.weight
""",
    "falcon_h1": """
mlp.linear_fc2.weight | feed_forward.down_proj.weight
self_attention.linear_proj.weight | self_attn.o_proj.weight
norm.weight | input_layernorm.weight
mlp.linear_fc1.layer_norm_weight | pre_ff_layernorm.weight
decoder.final_norm.weight | model.final_layernorm.weight
embedding.word_embeddings.weight | model.embed_tokens.weight
output_layer.weight | lm_head.weight
mamba_mixer.A_log | mamba.A_log
mamba_mixer.D | mamba.D
mamba_mixer.dt_bias | mamba.dt_bias
mamba_mixer.norm.weight | mamba.norm.weight
mamba_mixer.out_proj.weight | mamba.out_proj.weight
mamba_mixer.in_proj.weight | mamba.in_proj.weight
mamba_mixer.conv1d.weight | mamba.conv1d.weight
mamba_mixer.conv1d.bias | mamba.conv1d.bias
self_attention.linear_qkv.weight | self_attn.q_proj.weight
self_attention.linear_qkv.weight | self_attn.k_proj.weight
self_attention.linear_qkv.weight | self_attn.v_proj.weight
mlp.linear_fc1.weight | feed_forward.gate_proj.weight
mlp.linear_fc1.weight | feed_forward.up_proj.weight
""",
}

Tensors = dict[str, torch.Tensor]


def rules_of(family: str) -> Rules:
    return make_rules(config_of(family), hub_shapes(family))


def converted(folder: Path, family: str) -> Tensors:
    """Megatron's tensors, by the keys of a distributed checkpoint."""
    stored = write_tensors(folder / "hub.safetensors", hub_tensors(family))
    return {name: whole(found) for name, found in to_megatron(stored, rules_of(family)).items()}


def name_as_bridge(key: str) -> str:
    """Of all parts and experts together, below a layer."""
    key = re.sub(r"(in_proj|conv1d)\.(weight|bias)\.\w+$", r"\1.\2", key)
    key = re.sub(r"experts\.experts\.(linear_fc\d\.weight)", r"experts.\1*", key)
    return re.sub(r"^(decoder|backbone|model)\.layers\.\d+\.", "", key)


@pytest.mark.parametrize("family", HYBRIDS)
def test_names_are_those_of_megatron_bridge(family):
    found = {
        f"{name_as_bridge(key)} | {re.sub(r'experts.[0-9]+.', 'experts.*.', name_as_bridge(hub))}"
        for binding in rules_of(family).bindings
        for key in binding.names
        for hub in binding.hf
        if not key.startswith("mtp.")
    }
    assert found == set(BRIDGES[family].strip().splitlines())


@pytest.mark.parametrize("family", HYBRIDS)
def test_there_and_back_is_where_it_began(family, tmp_path):
    there = converted(tmp_path, family)
    values = torch.cat([tensor.flatten() for tensor in there.values()])
    hub = hub_tensors(family)
    assert values.sort().values.tolist() == list(
        range(1, 1 + sum(tensor.numel() for tensor in hub.values()))
    )
    stored = write_tensors(tmp_path / "mcore.safetensors", there)
    assert_equal(from_megatron(stored, rules_of(family)), hub)
    assert_equal(dict(restore_model(stored, config_of(family)).tensors), hub)


@pytest.mark.parametrize(
    ("family", "mixer"), [("nemotron_h", "mixer"), ("falcon_h1", "mamba_mixer")]
)
def test_parts_that_ranks_have_in_one_tensor(family, mixer, tmp_path):
    """As in files of single ranks, by the names of modules before and since 0.19."""
    there = converted(tmp_path, family)
    for spelling in (".", "_"):
        found = dict(there)
        for kind, parts in (("in_proj.weight", "z x B C dt"), ("conv1d.weight", "x B C")):
            stem = f"decoder.layers.0.{mixer}.{kind}"
            joined = torch.cat([found.pop(f"{stem}.{part}") for part in parts.split()])
            found[stem.replace("conv1d.", f"conv1d{spelling}")] = joined
        stored = write_tensors(tmp_path / f"ranks{spelling == '_'}.safetensors", found)
        assert_equal(dict(restore_model(stored, config_of(family)).tensors), hub_tensors(family))


def test_norms_as_local_layers_and_older_checkpoints_have_them(tmp_path):
    there = converted(tmp_path, "nemotron_h")
    named = {
        "decoder.final_norm.weight": "decoder.final_layernorm.weight",
        "decoder.layers.0.mixer.in_proj.layer_norm_weight": "decoder.layers.0.norm.weight",
        "decoder.layers.2.self_attention.linear_qkv.layer_norm_weight": (
            "decoder.layers.2.input_layernorm.weight"
        ),
        "decoder.layers.3.mlp.linear_fc1.layer_norm_weight": (
            "decoder.layers.3.pre_mlp_layernorm.weight"
        ),
    }
    assert named.keys() <= there.keys()
    found = {named.get(name, name): tensor for name, tensor in there.items()}
    stored = write_tensors(tmp_path / "old.safetensors", found)
    restored = restore_model(stored, config_of("nemotron_h"))
    assert_equal(dict(restored.tensors), hub_tensors("nemotron_h"))


@pytest.mark.parametrize("family", HYBRIDS)
def test_linear_layers_of_a_mixer_have_a_state_and_nothing_else_of_it(family):
    mixer = "mamba_mixer" if family == "falcon_h1" else "mixer"
    keys = list_extra_states(rules_of(family).bindings, hybrid=True)
    of_mixer = {key for key in keys if key.startswith(f"decoder.layers.0.{mixer}.")}
    assert of_mixer == {
        f"decoder.layers.0.{mixer}.{name}_proj._extra_state/shard_0_1" for name in ("in", "out")
    }


@pytest.mark.parametrize("family", HYBRIDS)
@pytest.mark.parametrize("layers", ["stacked", "per-layer"])
def test_another_layout_is_refused(family, layers):
    with pytest.raises(MappingError, match="is a HybridModel of megatron-core"):
        make_rules(config_of(family), hub_shapes(family), layers)
    assert rules_of(family).layout == "hybrid"


def test_arguments_say_what_the_layers_are():
    args = make_args(rules_of("nemotron_h"))
    assert args["hybrid_layer_pattern"] == "ME*-E/*E/*E"
    assert (args["num_layers"], args["mtp_num_layers"]) == (5, 2)
    sizes = ("state_dim", "head_dim", "num_groups", "num_heads")
    assert [args[f"mamba_{name}"] for name in sizes] == [7, 3, 2, 4]
    assert (args["swiglu"], args["squared_relu"]) == (False, True)
    assert args["position_embedding_type"] == "none"
    assert args["moe_latent_size"] == 10
    assert args["moe_shared_expert_intermediate_size"] == 9
    assert "hybrid_layer_pattern" not in make_args(rules_of("falcon_h1"))


def test_a_layer_for_multi_token_prediction_that_is_used_again_is_there_once():
    numbers = read_numbers(config_of("nemotron_h", mtp_use_repeated_layer=True))
    assert numbers.hybrid_pattern == "ME*-E/*E"


def test_a_falcon_without_a_norm_behind_the_scan():
    rules = make_rules(config_of("falcon_h1", mamba_rms_norm=False), hub_shapes("falcon_h1"))
    named = {name for binding in rules.bindings for name in binding.names}
    assert "decoder.layers.0.mamba_mixer.norm.weight" not in named


def test_a_state_of_another_size_is_refused(tmp_path):
    stored = write_tensors(tmp_path / "mcore.safetensors", converted(tmp_path, "nemotron_h"))
    config = config_of("nemotron_h", ssm_state_size=6)
    with pytest.raises(MappingError, match="not what") as caught:
        restore_model(stored, config)
    assert any("mixer.in_proj.weight.B [14, 6]" in fault for fault in caught.value.names)


def test_no_family_is_patterned_and_stands_not_here():
    patterned = {n for n, f in FAMILIES.items() if f.megatron and f.megatron.is_patterned}
    assert patterned >= HYBRIDS.keys()
