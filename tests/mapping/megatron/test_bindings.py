"""Names of both sides, spelled out for small models."""

import re
from collections import Counter
from math import prod

import pytest

from ckpt_tool.mapping.megatron.bindings import (
    LAYOUTS,
    Binding,
    choose_layout,
    make_bindings,
)
from ckpt_tool.mapping.megatron.extra_state import list_extra_states
from ckpt_tool.mapping.megatron.numbers import read_numbers, require_rows
from ckpt_tool.mapping.megatron.ops import QueryGroups, StackedHeads, SwapHalves, Vocabulary
from ckpt_tool.mapping.megatron.repeats import Repeat, find_repeats
from tests.support.megatron_models import (
    CASES,
    FAMILIES,
    GATED,
    MOE,
    PACKED,
    TOWERS,
    WITH_BLOCKS,
    alike,
    config_of,
    hub_shapes,
)

_LAYERED = r"(?!mtp\.)(?:\w+\.){0,2}layers\.([012])\.|(?:model\.)?visual\.blocks\.(\d)\."


def bindings(family: str, layout: str = "per-layer", **changes) -> list[Binding]:
    config = config_of(family, **changes)
    prefixes = require_rows(config).around.towers
    towers = {name: name for name in TOWERS.get(family, {}) if name.startswith(prefixes)}
    return make_bindings(require_rows(config), read_numbers(config), layout, towers)


def by_hub(found: list[Binding]) -> dict[str, Binding]:
    return {name: binding for binding in found for name in binding.hf}


@pytest.mark.parametrize(("family", "layout", "changes"), CASES, ids=str)
def test_every_hub_name_is_bound_once(family, layout, changes):
    named = Counter(name for b in bindings(family, layout, **changes) for name in b.hf)
    assert named.keys() == hub_shapes(family, **changes).keys()
    assert set(named.values()) == {1}


@pytest.mark.parametrize(("family", "layout", "changes"), CASES, ids=str)
def test_every_entry_of_a_megatron_tensor_is_bound_once(family, layout, changes):
    found = bindings(family, layout, **changes)
    places = Counter((b.names[0], b.index) for b in found)
    assert set(places.values()) == {1}
    for name in {b.names[0] for b in found}:
        group = [b for b in found if b.names[0] == name]
        assert len({b.extent for b in group}) == 1
        assert len(group) == prod(group[0].extent)
        assert all(len(b.index) == len(b.extent) for b in group)
        assert all(i < n for b in group for i, n in zip(b.index, b.extent, strict=True))
        assert len({(b.op, b.dtype) for b in group}) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_stacked_layers_share_names_and_layers_of_their_own_do_not(family):
    stacked = by_hub(bindings(family, "stacked", **alike(family)))
    for hub, per_layer in by_hub(bindings(family, **alike(family))).items():
        layered = re.match(_LAYERED, hub)
        if layered is None or hub in TOWERS.get(family, {}) or "mtp." in hub:
            assert stacked[hub] == per_layer
            continue
        layer, count = int(layered[1] or layered[2]), 3 if layered[1] else 2
        assert f"decoder.layers.{layer}." in per_layer.names[0]
        assert stacked[hub].names[0] == per_layer.names[0].replace(f"layers.{layer}.", "layers.")
        assert stacked[hub].index == (layer, *per_layer.index)
        assert stacked[hub].extent == (count, *per_layer.extent)
        assert stacked[hub].op == per_layer.op


@pytest.mark.parametrize("family", sorted(MOE.keys() - set(PACKED)))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_experts_are_entries_of_one_tensor(family, layout):
    found = by_hub(bindings(family, layout, **alike(family)))
    experts = {hub: b for hub, b in found.items() if ".experts." in hub}
    kinds = {b.names[0].split(".experts.experts.")[1] for b in experts.values()}
    assert kinds == {"linear_fc1.weight", "linear_fc2.weight"}
    for hub, binding in experts.items():
        layer, expert = int(hub.split(".")[2]), int(hub.split(".experts.")[1].split(".")[0])
        inside = layout == "stacked" and layer < 3 and not hub.startswith("mtp.")
        assert binding.index == ((layer, expert) if inside else (expert,))
        assert binding.extent == ((3, 3) if inside else (3,))


@pytest.mark.parametrize("family", FAMILIES)
def test_default_layout_is_stacked_where_megatron_cores_is(family):
    config = config_of(family)
    differing = 0 < len(MOE.get(family, ())) < 3 or family in GATED
    expected = "per-layer" if differing else "stacked"
    assert choose_layout(require_rows(config), read_numbers(config)) == expected


def test_default_layout_of_what_is_alike_after_all():
    for family, expected in [("qwen2_moe", "stacked"), ("deepseek_v3", "per-layer")]:
        config = config_of(family, **alike(family))
        assert choose_layout(require_rows(config), read_numbers(config)) == expected


def test_a_dense_layer_by_hand():
    found = {b.hf: b.names[0] for b in bindings("llama") if "decoder.layers.1." in b.names[0]}
    hub, own = "model.layers.1.", "decoder.layers.1."
    attn, qkv = f"{hub}self_attn.", f"{own}self_attention.linear_qkv."
    assert found == {
        (f"{hub}input_layernorm.weight",): f"{qkv}layer_norm_weight",
        (f"{attn}q_proj.weight", f"{attn}k_proj.weight", f"{attn}v_proj.weight"): f"{qkv}weight",
        (f"{attn}q_proj.bias", f"{attn}k_proj.bias", f"{attn}v_proj.bias"): f"{qkv}bias",
        (f"{attn}o_proj.weight",): f"{own}self_attention.linear_proj.weight",
        (f"{attn}o_proj.bias",): f"{own}self_attention.linear_proj.bias",
        (f"{hub}post_attention_layernorm.weight",): f"{own}mlp.linear_fc1.layer_norm_weight",
        (f"{hub}mlp.gate_proj.weight", f"{hub}mlp.up_proj.weight"): f"{own}mlp.linear_fc1.weight",
        (f"{hub}mlp.gate_proj.bias", f"{hub}mlp.up_proj.bias"): f"{own}mlp.linear_fc1.bias",
        (f"{hub}mlp.down_proj.weight",): f"{own}mlp.linear_fc2.weight",
        (f"{hub}mlp.down_proj.bias",): f"{own}mlp.linear_fc2.bias",
    }


def test_a_hybrid_model_by_hand():
    """Attention and MLP of layer i are layers 2i and 2i + 1, also where a token is predicted."""
    found = {b.names[0]: b for b in bindings("glm4_moe", "hybrid")}
    assert "decoder.final_layernorm.weight" not in found
    assert found["decoder.final_norm.weight"].hf == ("model.norm.weight",)
    layers = {
        "decoder.layers.0.self_attention.linear_proj": "model.layers.0.self_attn.o_proj",
        "decoder.layers.1.mlp.linear_fc2": "model.layers.0.mlp.down_proj",
        "decoder.layers.4.self_attention.linear_proj": "model.layers.2.self_attn.o_proj",
        "decoder.layers.5.mlp.router": "model.layers.2.mlp.gate",
        "mtp.layers.0.eh_proj": "model.layers.3.eh_proj",
        "mtp.layers.0.mtp_model_layer.layers.0.self_attention.linear_proj": (
            "model.layers.3.self_attn.o_proj"
        ),
        "mtp.layers.0.mtp_model_layer.layers.1.mlp.router": "model.layers.3.mlp.gate",
    }
    for name, hub in layers.items():
        binding = found[f"{name}.weight"]
        assert (binding.hf, binding.index, binding.extent) == ((f"{hub}.weight",), (), ())
    numbers = {
        (int(m[1]), m[2])
        for name in found
        if (m := re.match(r"decoder\.layers\.(\d)\.([a-z_]+)", name))
    }
    kinds = {(n, "self_attention") for n in (0, 2, 4)} | {(n, "mlp") for n in (1, 3, 5)}
    assert numbers == kinds | {(n, "pre_mlp_layernorm") for n in (3, 5)}


def test_a_layer_with_experts_by_hand():
    bound = bindings("deepseek_v3")
    found = {b.hf: b.names[0] for b in bound if "decoder.layers.2." in b.names[0]}
    hub, own = "model.layers.2.", "decoder.layers.2."
    attn, own_attn = f"{hub}self_attn.", f"{own}self_attention."
    moe, shared = f"{own}mlp.experts.experts.linear_", f"{hub}mlp.shared_experts."
    own_shared = f"{own}mlp.shared_experts.linear_fc"
    stems = [f"{hub}mlp.experts.{expert}." for expert in range(3)]
    assert found == {
        (f"{hub}input_layernorm.weight",): f"{own}input_layernorm.weight",
        (f"{attn}q_a_proj.weight",): f"{own_attn}linear_q_down_proj.weight",
        (f"{attn}q_a_layernorm.weight",): f"{own_attn}linear_q_up_proj.layer_norm_weight",
        (f"{attn}q_b_proj.weight",): f"{own_attn}linear_q_up_proj.weight",
        (f"{attn}kv_a_proj_with_mqa.weight",): f"{own_attn}linear_kv_down_proj.weight",
        (f"{attn}kv_a_layernorm.weight",): f"{own_attn}linear_kv_up_proj.layer_norm_weight",
        (f"{attn}kv_b_proj.weight",): f"{own_attn}linear_kv_up_proj.weight",
        (f"{attn}o_proj.weight",): f"{own_attn}linear_proj.weight",
        (f"{hub}post_attention_layernorm.weight",): f"{own}pre_mlp_layernorm.weight",
        (f"{hub}mlp.gate.weight",): f"{own}mlp.router.weight",
        (f"{hub}mlp.gate.e_score_correction_bias",): f"{own}mlp.router.expert_bias",
        **{(f"{e}gate_proj.weight", f"{e}up_proj.weight"): f"{moe}fc1.weight" for e in stems},
        **{(f"{stem}down_proj.weight",): f"{moe}fc2.weight" for stem in stems},
        (f"{shared}gate_proj.weight", f"{shared}up_proj.weight"): f"{own_shared}1.weight",
        (f"{shared}down_proj.weight",): f"{own_shared}2.weight",
    }
    fixed = {b.names[0] for b in bound if b.dtype == "float32"}
    assert fixed == {f"{own}mlp.router.expert_bias"} | {
        f"{stem}.mlp.router.expert_bias"
        for stem in ("decoder.layers.1", "mtp.layers.0.transformer_layer")
    }


def test_operations_know_the_sizes_of_the_model():
    found = by_hub(bindings("qwen2_5_vl"))
    assert found["model.layers.0.self_attn.q_proj.bias"].op == QueryGroups(4, 2, 2)
    assert found["visual.blocks.1.attn.qkv.weight"].op == StackedHeads(2)
    config = config_of("llama")
    padded = make_bindings(require_rows(config), read_numbers(config, 8), "stacked")
    vocabulary = {b.names[0] for b in padded if b.op == Vocabulary(11, 16)}
    assert vocabulary == {"embedding.word_embeddings.weight", "output_layer.weight"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_multi_token_prediction_has_a_layer_of_its_own(layout):
    found = by_hub(bindings("deepseek_v3", layout, **alike("deepseek_v3")))
    hub, own = "model.layers.3.", "mtp.layers.0."
    names = {"enorm": "enorm", "eh_proj": "eh_proj", "shared_head.norm": "final_layernorm"}
    for name, target in names.items():
        assert found[f"{hub}{name}.weight"].names[0] == f"{own}{target}.weight"
    expert = found[f"{hub}mlp.experts.1.up_proj.weight"]
    inside = "mtp_model_layer.layers.1." if layout == "hybrid" else "transformer_layer."
    assert expert.names[0] == f"{own}{inside}mlp.experts.experts.linear_fc1.weight"
    assert (expert.index, expert.extent) == ((1,), (3,))


def test_multi_token_prediction_of_mimo():
    found = by_hub(bindings("mimo", "stacked"))
    hub, own = "model.mtp_layers.1.", "mtp.layers.1."
    assert found[f"{hub}input_proj.weight"].names[0] == f"{own}eh_proj.weight"
    assert found[f"{hub}input_proj.weight"].op == SwapHalves()
    assert found[f"{hub}token_layernorm.weight"].names[0] == f"{own}enorm.weight"
    assert found[f"{hub}hidden_layernorm.weight"].names[0] == f"{own}hnorm.weight"
    query = found[f"{hub}self_attn.q_proj.weight"]
    assert query.names[0] == f"{own}transformer_layer.self_attention.linear_qkv.weight"
    assert query.extent == ()


def test_what_multi_token_prediction_repeats():
    for tied, head in [(False, "lm_head.weight"), (True, "model.embed_tokens.weight")]:
        config = config_of("glm4_moe", tie_word_embeddings=tied)
        assert find_repeats(require_rows(config), read_numbers(config)) == [
            Repeat("model.layers.3.embed_tokens.weight", "model.embed_tokens.weight"),
            Repeat("model.layers.3.shared_head.head.weight", head),
        ]


def test_names_of_a_vision_model():
    found = by_hub(bindings("qwen2_5_vl", "stacked"))
    text, vision = "language_model.", "vision_model."
    expected = {
        "model.embed_tokens.weight": f"{text}embedding.word_embeddings.weight",
        "model.norm.weight": f"{text}decoder.final_layernorm.weight",
        "lm_head.weight": f"{text}output_layer.weight",
        "model.layers.2.mlp.down_proj.weight": f"{text}decoder.layers.mlp.linear_fc2.weight",
        "visual.patch_embed.proj.weight": f"{vision}patch_embed.proj.weight",
        "visual.merger.ln_q.weight": f"{vision}decoder.final_layernorm.weight",
        "visual.merger.mlp.2.bias": f"{vision}projection.encoder.linear_fc2.bias",
        "visual.blocks.1.attn.proj.bias": f"{vision}decoder.layers.self_attention.linear_proj.bias",
        "visual.blocks.1.norm2.weight": f"{vision}decoder.layers.mlp.linear_fc1.layer_norm_weight",
    }
    assert {hub: found[hub].names[0] for hub in expected} == expected
    assert {b.names[0].split(".")[0] for b in found.values()} == {"language_model", "vision_model"}


def extra(family: str, layout: str, **changes) -> list[str]:
    return list_extra_states(bindings(family, layout, num_hidden_layers=2, **changes))


DENSE = "self_attention.linear_qkv self_attention.linear_proj self_attention.core_attention"
FINAL = "decoder.final_layernorm._extra_state/shard_0_1"


def test_extra_states_of_a_dense_model_by_hand():
    modules = f"{DENSE} mlp.linear_fc1 mlp.linear_fc2".split()
    stacked = [f"decoder.layers.{m}._extra_state/shard_{n}_2" for n in (0, 1) for m in modules]
    own = [f"decoder.layers.{n}.{m}._extra_state/shard_0_1" for n in (0, 1) for m in modules]
    assert sorted(extra("llama", "stacked")) == sorted([FINAL, *stacked])
    assert sorted(extra("llama", "per-layer")) == sorted([FINAL, *own])


def test_extra_states_of_a_model_with_experts_by_hand():
    modules = f"{DENSE} self_attention.q_layernorm self_attention.k_layernorm".split()
    modules.append("pre_mlp_layernorm")
    experts = [f"mlp.experts.experts.linear_fc{n}._extra_state/shard_" for n in (1, 2)]
    stacked, own = [FINAL], [FINAL]
    for n in (0, 1):
        stacked += [f"decoder.layers.{m}._extra_state/shard_{n}_2" for m in modules]
        stacked += [f"decoder.layers.{e}{n}.{i}_2.3" for e in experts for i in range(3)]
        own += [f"decoder.layers.{n}.{m}._extra_state/shard_0_1" for m in modules]
        own += [f"decoder.layers.{n}.{e}{i}_3" for e in experts for i in range(3)]
    assert sorted(extra("qwen3_moe", "stacked")) == sorted(stacked)
    assert sorted(extra("qwen3_moe", "per-layer")) == sorted(own)


@pytest.mark.parametrize(("family", "layout", "changes"), CASES, ids=str)
def test_extra_states_are_not_repeated_and_include_attention(family, layout, changes):
    found = list_extra_states(bindings(family, layout, **changes))
    assert len(found) == len(set(found))
    attention = {name for name in found if ".self_attention.core_attention._" in name}
    numbers = read_numbers(config_of(family, **changes))
    towers = 3 + numbers.mtp + 2 * (family in WITH_BLOCKS)
    towers -= numbers.kinds.count("linear_attention")
    assert len(attention) == towers
    plain = ("router", "word_embeddings", "output_layer", "gate_weight", "patch_embed")
    assert not [name for name in found if any(word in name for word in plain)]
