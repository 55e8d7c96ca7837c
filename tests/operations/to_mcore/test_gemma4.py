"""Gemma 4 to Megatron and back, against the names and layouts of Megatron-Bridge.

`DENSE`, `MOE` and `BESIDE` are rows of Megatron-Bridge 0.6.2 (`gemma4`), copied. In checkpoints its
attention has the name of its kind, and is stacked with the layers of that kind.
"""

import json
import re
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from ckpt_tool import (
    MergeOptions,
    ToMcoreOptions,
    WriteOptions,
    convert_to_mcore,
    merge_megatron,
    open_checkpoint,
)
from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.config import load_config
from ckpt_tool.mapping.megatron.convert import restore_model
from tests.operations.to_mcore.test_inputs import NO_SYNC, Tensors, assert_same, convert, loaded
from tests.support.gemma4_models import GEMMA4, HEARING, write_gemma4
from tests.support.merging import load_folder
from tests.support.versions import needs_transformers_5

pytestmark = needs_transformers_5

#: A layer of Megatron's, and what it is on the Hub: one tensor, or several one after the other.
SAME = {
    "self_attention.q_layernorm.weight": ["self_attn.q_norm.weight"],
    "self_attention.linear_proj.weight": ["self_attn.o_proj.weight"],
    "layer_scalar": ["layer_scalar"],
}
DENSE = SAME | {
    "input_layernorm.weight": ["input_layernorm.weight"],
    "post_self_attn_layernorm.weight": ["post_attention_layernorm.weight"],
    "pre_mlp_layernorm.weight": ["pre_feedforward_layernorm.weight"],
    "post_mlp_layernorm.weight": ["post_feedforward_layernorm.weight"],
    "mlp.linear_fc1.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "mlp.linear_fc2.weight": ["mlp.down_proj.weight"],
    "per_layer_input_gate.weight": ["per_layer_input_gate.weight"],
    "per_layer_projection.weight": ["per_layer_projection.weight"],
    "post_per_layer_input_norm.weight": ["post_per_layer_input_norm.weight"],
}
MOE = SAME | {
    "self_attention.linear_qkv.layer_norm_weight": ["input_layernorm.weight"],
    "self_attention.linear_proj.post_layernorm.weight": ["post_attention_layernorm.weight"],
    "pre_mlp_layernorm.weight": ["pre_feedforward_layernorm_2.weight"],
    "mlp.shared_experts.linear_fc1.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "mlp.shared_experts.linear_fc2.weight": ["mlp.down_proj.weight"],
    "mlp.post_shared_expert_layernorm.weight": ["post_feedforward_layernorm_1.weight"],
    "mlp.router.weight": ["router.proj.weight"],
    "mlp.router.scale": ["router.scale"],
    "mlp.router.per_expert_scale": ["router.per_expert_scale"],
    "mlp.experts.experts.linear_fc1.weight": ["experts.gate_up_proj"],
    "mlp.experts.experts.linear_fc2.weight": ["experts.down_proj"],
    "pre_shared_expert_layernorm.weight": ["pre_feedforward_layernorm.weight"],
    "mlp.post_moe_layernorm.weight": ["post_feedforward_layernorm_2.weight"],
    "post_ffn_layernorm.weight": ["post_feedforward_layernorm.weight"],
}
BESIDE = {
    "embedding.word_embeddings.weight": "embed_tokens.weight",
    "decoder.final_layernorm.weight": "norm.weight",
    "per_layer_embedding.weight": "embed_tokens_per_layer.weight",
    "per_layer_model_proj.weight": "per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "per_layer_projection_norm.weight",
}
TOWERS = ("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio.")
#: The kinds of the six layers, and how many key and value heads they have, how wide.
KINDS = ["sliding", "sliding", "global"] * 2
HEADS = {"sliding": (2, 8), "global": (1, 16)}
every_model = pytest.mark.parametrize("name", GEMMA4)


def weave(hub: Tensors, layer: str, heads: tuple[int, int]) -> torch.Tensor:
    """Query, key and value by hand; what the Hub has not is what Megatron-Bridge makes of it."""
    groups, width = heads
    query = hub[f"{layer}self_attn.q_proj.weight"]
    key = hub.get(f"{layer}self_attn.k_proj.weight", torch.zeros(groups * width, query.shape[1]))
    value = hub.get(f"{layer}self_attn.v_proj.weight", key)
    parts = [part.chunk(groups) for part in (query, key, value)]
    return torch.cat([part[group] for group in range(groups) for part in parts])


def list_wanted(hub: Tensors, heads: dict[str, tuple[int, int]], stacked: bool) -> Tensors:
    """Every tensor of Megatron's language model, by the rows of Megatron-Bridge."""
    trunk = "model.language_model." if "model.language_model.norm.weight" in hub else "model."
    wanted = {ours: hub[trunk + theirs] for ours, theirs in BESIDE.items() if trunk + theirs in hub}
    rows = MOE if f"{trunk}layers.0.router.scale" in hub else DENSE
    layers: dict[str, list[torch.Tensor]] = {}
    for number, kind in enumerate(KINDS):
        layer = f"{trunk}layers.{number}."
        found = {
            ours: torch.cat([hub[layer + name] for name in theirs])
            for ours, theirs in rows.items()
            if layer + theirs[0] in hub
        }
        found["self_attention.linear_qkv.weight"] = weave(hub, layer, heads[kind])
        ones = torch.ones(heads[kind][1])
        norm = hub.get(f"{layer}self_attn.k_norm.weight", ones)
        found["self_attention.k_layernorm.weight"] = norm
        place = "decoder.layers." if stacked else f"decoder.layers.{number}."
        for name, tensor in found.items():
            stored = place + name.replace("self_attention.", f"self_attention_{kind}.")
            layers.setdefault(stored, []).append(tensor)
    joined = {n: torch.stack(ts) if stacked else ts[0] for n, ts in layers.items()}
    return wanted | joined


def heads_of(name: str) -> dict[str, tuple[int, int]]:
    tied = GEMMA4[name].get("attention_k_eq_v", False)
    return HEADS if tied else HEADS | {"global": (2, 16)}


@every_model
@pytest.mark.parametrize("layers", ["", "per-layer"])
def test_every_tensor_is_where_megatron_bridge_has_it(name, layers, tmp_path) -> None:
    model = write_gemma4(name, tmp_path / "hf")
    convert(model, tmp_path / "mcore", layers=layers)
    hub = load_folder(model)
    stacked = not layers and name != "e2b"  # whose MLPs are not all as wide
    assert_same(loaded(tmp_path / "mcore"), list_wanted(hub, heads_of(name), stacked))
    back = MergeOptions(config=model, write=WriteOptions(fsync=False, check_load=True))
    result = merge_megatron(tmp_path / "mcore", tmp_path / "back", back)
    assert_same(load_folder(tmp_path / "back"), hub)
    assert result.dropped


@every_model
def test_towers_are_beside_the_language_model(name, tmp_path) -> None:
    model = write_gemma4(name, tmp_path / "hf", towers=True)
    convert(model, tmp_path / "mcore", vocab_multiple=64)
    hub, found = load_folder(model), loaded(tmp_path / "mcore")
    others = {f"model.{tower}" for tower in TOWERS[: 4 if name in HEARING else 2]}
    towers = {n.removeprefix("model."): t for n, t in hub.items() if n.startswith(tuple(others))}
    assert {f"model.{n.partition('.')[0]}." for n in towers} == others
    language = list_wanted(hub, heads_of(name), stacked=name != "e2b")
    key = "language_model.embedding.word_embeddings.weight"
    assert not found[key][48:].any()
    found[key] = found[key][:48]
    assert_same(found, {f"language_model.{n}": t for n, t in language.items()} | towers)
    merge_megatron(tmp_path / "mcore", tmp_path / "back", MergeOptions(config=model, write=NO_SYNC))
    assert_same(load_folder(tmp_path / "back"), hub)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_what_trained_away_and_no_model_reads_is_left_out_and_said(tmp_path) -> None:
    model = write_gemma4("31b", tmp_path / "hf")
    convert(model, tmp_path / "mcore")
    trained = loaded(tmp_path / "mcore")
    key = "decoder.layers.self_attention_global.linear_qkv.weight"
    assert trained[key].shape == (2, 64 + 16 + 16, 32)
    trained[key][:, -16:] *= 0.5  # as weight decay does to what has no gradient
    dcp.save(trained, checkpoint_id=tmp_path / "trained", no_dist=True)
    result = merge_megatron(
        tmp_path / "trained", tmp_path / "back", MergeOptions(config=model, write=NO_SYNC)
    )
    assert result.dropped == {
        f"{key}, rows of values": (
            "Megatron's model takes keys for values (attention_k_eq_v), and reads no others"
        )
    }
    assert_same(load_folder(tmp_path / "back"), load_folder(model))


def test_keys_that_released_models_have_and_never_read_come_along(tmp_path) -> None:
    """Each layer has keys and values there, where transformers' model shares them."""
    model = write_gemma4("e4b", tmp_path / "hf")
    tensors = load_folder(model)
    for layer in (3, 4, 5):
        for part in ("k_proj", "v_proj", "k_norm"):
            name = f"self_attn.{part}.weight"
            earlier = tensors[f"model.layers.{layer - 3}.{name}"]
            tensors[f"model.layers.{layer}.{name}"] = earlier + layer
    released = tmp_path / "released"
    shutil.copytree(model, released, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(tensors, released / "model.safetensors", {"format": "pt"})
    convert(released, tmp_path / "mcore")
    assert_same(loaded(tmp_path / "mcore"), list_wanted(tensors, heads_of("e4b"), stacked=True))
    for fill_from, expected in ((None, load_folder(model)), (released, tensors)):
        back = MergeOptions(config=released, write=NO_SYNC, fill_from=fill_from)
        merge_megatron(tmp_path / "mcore", tmp_path / f"back_{fill_from is None}", back)
        assert_same(load_folder(tmp_path / f"back_{fill_from is None}"), expected)


@every_model
def test_modules_have_the_attention_of_each_layer_under_one_name(name, tmp_path) -> None:
    """So files of single ranks have it, and those of Megatron-FSDP."""
    model = write_gemma4(name, tmp_path / "hf", towers=True)
    convert(model, tmp_path / "mcore", layers="per-layer")
    found = {
        f"module.{re.sub('_(sliding|global)[.]', '.', name)}": tensor
        for name, tensor in open_checkpoint(tmp_path / "mcore").items()
    }
    restored = restore_model(found, load_config(model))
    assert_same({n: t.read() for n, t in restored.tensors.items()}, load_folder(model))


def test_weights_that_megatron_bridge_has_folded_are_refused(tmp_path) -> None:
    model = write_gemma4("26b", tmp_path / "hf")
    convert(model, tmp_path / "mcore", layers="per-layer")
    found = {
        name.replace("pre_shared_expert_layernorm.weight", "pffl_weight"): tensor
        for name, tensor in open_checkpoint(tmp_path / "mcore").items()
    }
    with pytest.raises(MappingError) as caught:
        restore_model(found, load_config(model))
    assert "Megatron-Bridge 0.5 has folded" in caught.value.hint


def test_configs_of_the_hub_say_the_same_in_other_words(tmp_path) -> None:
    model = write_gemma4("31b", tmp_path / "hf")
    said = json.loads((model / "config.json").read_text())
    del said["per_layer_config"]
    said |= {"global_head_dim": 16, "num_global_key_value_heads": 1}
    (model / "config.json").write_text(json.dumps(said))
    convert(model, tmp_path / "mcore")
    assert_same(loaded(tmp_path / "mcore"), list_wanted(load_folder(model), HEADS, stacked=True))


def test_experts_beside_shared_keys_are_refused_by_the_key_of_the_config(tmp_path) -> None:
    model = write_gemma4("26b", tmp_path / "hf")
    said = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(said | {"num_kv_shared_layers": 3}))
    with pytest.raises(MappingError, match="num_kv_shared_layers is 3 beside enable_moe_block"):
        convert_to_mcore(model, tmp_path / "out")


@pytest.mark.real
def test_megatron_core_cannot_build_it(tmp_path) -> None:
    model = write_gemma4("e4b", tmp_path / "hf")
    checked = ToMcoreOptions(write=WriteOptions(fsync=False, check_load=True))
    with pytest.raises(UsageError, match=r"no such layers: they are Megatron-Bridge's own"):
        convert_to_mcore(model, tmp_path / "out", checked)
