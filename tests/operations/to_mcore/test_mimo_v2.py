"""MiMo-V2-Flash to Megatron and back, against the names and layouts of Megatron-Bridge.

`NAMES` are rows of Megatron-Bridge 0.6.2 (`mimo_v2_flash`), copied: those of layers that predict
further tokens, which transformers' model has not, are held against nothing else.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckpt_tool import MergeOptions, ToMcoreOptions, WriteOptions, convert_to_mcore, merge_megatron
from ckpt_tool.common.errors import MappingError, UsageError
from tests.operations.to_mcore.test_inputs import NO_SYNC, Tensors, assert_same, convert, loaded
from tests.real.fill import fill_distinct
from tests.support.merging import load_folder
from tests.support.versions import needs_transformers_5

pytestmark = needs_transformers_5

HEADS, HEAD, VALUE, HIDDEN = 4, 6, 4, 16
#: Key and value heads: of full attention, of sliding attention.
GROUPS = {"full_attention": 1, "sliding_attention": 2}
KINDS = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
#: A layer of Megatron's, and what it is on the Hub.
NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "self_attention.core_attention.softmax_offset": "self_attn.attention_sink_bias",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
    "mlp.router.expert_bias": "mlp.gate.e_score_correction_bias",
    "mlp.router.weight": "mlp.gate.weight",
}
AHEAD = NAMES | {"mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight"}


def make_config(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 61,
        "hidden_size": HIDDEN,
        "intermediate_size": 12,
        "num_hidden_layers": 4,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS["full_attention"],
        "head_dim": HEAD,
        "v_head_dim": VALUE,
        "n_routed_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 10,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers writes it, and two layers for multi-token prediction as the Hub has them."""
    from transformers import MiMoV2FlashConfig, MiMoV2FlashForCausalLM

    folder = tmp_path_factory.mktemp("mimo")
    config = make_config(layer_types=KINDS, mlp_layer_types=["dense", "sparse", "sparse", "sparse"])
    model = MiMoV2FlashForCausalLM(MiMoV2FlashConfig(**config))
    fill_distinct(model)
    model.save_pretrained(folder)
    tensors = load_folder(folder)
    ahead: Tensors = {}
    dense = {n: t for n, t in tensors.items() if n.startswith("model.layers.0.mlp.")}
    sliding = {n: t for n, t in tensors.items() if n.startswith("model.layers.1.self_attn.")}
    for number in range(2):
        layer = f"model.mtp.layers.{number}."
        for name, tensor in (dense | sliding).items():
            ahead[layer + name.split(".", 3)[3]] = tensor + 1 + number
        for at, name in enumerate(("enorm", "hnorm", "final_layernorm", "input_layernorm")):
            ahead[f"{layer}{name}.weight"] = torch.arange(HIDDEN) + 100.0 * at + number
        ahead[f"{layer}pre_mlp_layernorm.weight"] = torch.arange(HIDDEN) - 50.0 - number
        size = 2 * HIDDEN * HIDDEN
        ahead[f"{layer}eh_proj.weight"] = torch.arange(size).reshape(HIDDEN, -1) + number / 2
    save_file(tensors | ahead, folder / "model.safetensors", {"format": "pt"})
    return folder


def weave(hub: Tensors, layer: str, groups: int) -> torch.Tensor:
    """Query, key and value by hand: as Megatron-Bridge's `MiMoV2FlashQKVMapping` has them."""
    query, key, value = (hub[f"{layer}self_attn.{part}_proj.weight"] for part in "qkv")
    rows, each = [], HEADS // groups * HEAD
    for group in range(groups):
        rows += [
            query[group * each : (group + 1) * each],
            key[group * HEAD : (group + 1) * HEAD],
            value[group * VALUE : (group + 1) * VALUE],
        ]
    return torch.cat(rows)


def list_wanted(hub: Tensors) -> Tensors:
    """Every tensor of Megatron's, by the rows of Megatron-Bridge."""
    wanted = {
        "embedding.word_embeddings.weight": hub["model.embed_tokens.weight"],
        "output_layer.weight": hub["lm_head.weight"],
        "decoder.final_layernorm.weight": hub["model.norm.weight"],
    }
    places = [
        (f"decoder.layers.{layer}.", f"model.layers.{layer}.", kind, NAMES)
        for layer, kind in enumerate(KINDS)
    ]
    for number in range(2):
        mtp = f"mtp.layers.{number}."
        places.append((f"{mtp}transformer_layer.", f"model.{mtp}", "sliding_attention", AHEAD))
        for name in ("eh_proj", "enorm", "hnorm", "final_layernorm"):
            wanted[f"{mtp}{name}.weight"] = hub[f"model.{mtp}{name}.weight"]
    for ours, theirs, kind, names in places:
        wanted[f"{ours}self_attention.linear_qkv.weight"] = weave(hub, theirs, GROUPS[kind])
        is_sparse = f"{theirs}mlp.gate.weight" in hub
        for name, other in names.items():
            if name.startswith("mlp.linear" if is_sparse else "pre_mlp_"):
                continue
            if theirs + other in hub:
                wanted[ours + name] = hub[theirs + other]
        if not is_sparse:
            parts = [hub[f"{theirs}mlp.{part}_proj.weight"] for part in ("gate", "up")]
            wanted[f"{ours}mlp.linear_fc1.weight"] = torch.cat(parts)
            continue
        experts = [f"{theirs}mlp.experts.{number}." for number in range(3)]
        wanted[f"{ours}mlp.experts.experts.linear_fc1.weight"] = torch.stack(
            [
                torch.cat([hub[f"{each}{part}_proj.weight"] for part in ("gate", "up")])
                for each in experts
            ]
        )
        wanted[f"{ours}mlp.experts.experts.linear_fc2.weight"] = torch.stack(
            [hub[f"{each}down_proj.weight"] for each in experts]
        )
    return wanted


def test_every_tensor_is_where_megatron_bridge_has_it(model, tmp_path) -> None:
    convert(model, tmp_path / "mcore", dtype="float32")
    hub = load_folder(model)
    assert sum(name.endswith("attention_sink_bias") for name in hub) == 4
    assert_same(loaded(tmp_path / "mcore"), list_wanted(hub))
    merge_megatron(tmp_path / "mcore", tmp_path / "back", MergeOptions(config=model, write=NO_SYNC))
    assert_same(load_folder(tmp_path / "back"), hub)


def test_the_bias_of_a_router_is_never_rounded(model, tmp_path) -> None:
    hub = load_folder(model)
    biases = {n: t + 1 / 3 for n, t in hub.items() if n.endswith("e_score_correction_bias")}
    (tmp_path / "hf").mkdir()
    save_file(hub | biases, tmp_path / "hf/model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text()) | {"dtype": "bfloat16"}
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    convert(tmp_path / "hf", tmp_path / "mcore")
    found = loaded(tmp_path / "mcore")
    assert found["decoder.layers.1.mlp.router.weight"].dtype == torch.bfloat16
    for layer in (1, 2, 3):
        bias = biases[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"]
        assert torch.equal(found[f"decoder.layers.{layer}.mlp.router.expert_bias"], bias)
    write = replace(NO_SYNC, check_load=False)
    merge_megatron(
        tmp_path / "mcore", tmp_path / "back", MergeOptions(config=tmp_path / "hf", write=write)
    )
    back = load_folder(tmp_path / "back")
    assert_same({name: back[name] for name in biases}, biases)


def test_the_config_of_the_hub_says_the_same(model, tmp_path) -> None:
    """Numbers in place of kinds, and the key and value heads of sliding attention."""
    said = make_config(
        model_type="mimo_v2_flash",
        dtype="float32",
        hybrid_layer_pattern=[0, 1, 1, 0],
        moe_layer_freq=[0, 1, 1, 1],
        swa_num_key_value_heads=2,
        add_swa_attention_sink_bias=True,
        add_full_attention_sink_bias=False,
    )
    (tmp_path / "config.json").write_text(json.dumps(said))
    for file in model.glob("*.safetensors*"):
        (tmp_path / file.name).symlink_to(file)
    convert(tmp_path, tmp_path / "out", dtype="float32")
    assert_same(loaded(tmp_path / "out"), list_wanted(load_folder(model)))


def test_layers_of_two_kinds_are_not_stacked(model, tmp_path) -> None:
    with pytest.raises(MappingError, match="cannot be stacked"):
        convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(layers="stacked"))


@pytest.mark.real
def test_megatron_core_cannot_build_it(model, tmp_path) -> None:
    checked = ToMcoreOptions(write=WriteOptions(fsync=False, check_load=True))
    with pytest.raises(UsageError, match="bring an attention of their own"):
        convert_to_mcore(model, tmp_path / "out", checked)
