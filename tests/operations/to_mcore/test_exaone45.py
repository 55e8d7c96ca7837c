"""EXAONE 4.5: its tower's queries share keys and values, and a layer predicts further tokens."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from ckpt_tool import (
    MergeOptions,
    ToMcoreOptions,
    WriteOptions,
    convert_to_mcore,
    merge_megatron,
    open_checkpoint,
)
from tests.real.fill import fill_distinct
from tests.support.merging import assert_same, load_folder

UNSYNCED = WriteOptions(fsync=False, check_load=False)
TEXT = {
    "model_type": "exaone4",
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
VISION = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """As it is released: transformers leaves out the layer for multi-token prediction."""
    if not hasattr(transformers, "Exaone4_5_Config"):
        pytest.skip("transformers has no EXAONE 4.5")
    config = transformers.Exaone4_5_Config(text_config=TEXT, vision_config=VISION)
    model = transformers.Exaone4_5_ForConditionalGeneration(config)
    fill_distinct(model)
    folder = tmp_path / "hf"
    model.save_pretrained(folder)
    tensors = load_folder(folder)
    first, norm = "model.language_model.layers.0.", tensors["model.language_model.norm.weight"]
    ahead = {
        name.replace(first, "mtp.layers.0."): tensor + 1
        for name, tensor in tensors.items()
        if name.startswith(first)
    }
    for at, name in enumerate(("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")):
        ahead[f"mtp.{name}.weight"] = norm + 2 + at
    ahead["mtp.fc.weight"] = torch.arange(32.0 * 64).reshape(32, 64)
    save_file(tensors | ahead, folder / "model.safetensors", {"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    said["text_config"]["num_nextn_predict_layers"] = 1
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def convert(model: Path, out: Path, **options) -> dict[str, torch.Tensor]:
    convert_to_mcore(model, out, ToMcoreOptions(write=UNSYNCED, **options))
    return {name: tensor.read() for name, tensor in open_checkpoint(out).items()}


def test_queries_of_the_tower_are_before_the_keys_and_values_that_they_share(model, tmp_path):
    found, hub = convert(model, tmp_path / "out"), load_folder(model)
    joined = found["vision_model.decoder.layers.self_attention.linear_qkv.weight"]
    assert joined.shape == (2, 32, 16)
    for layer in range(2):
        query, key, value = hub[f"model.visual.blocks.{layer}.attn.qkv.weight"].split([16, 8, 8])
        groups = [
            torch.cat([query[8 * g :][:8], key[4 * g :][:4], value[4 * g :][:4]]) for g in (0, 1)
        ]
        assert torch.equal(joined[layer], torch.cat(groups))


def test_names_are_those_of_megatron_bridge(model, tmp_path):
    found, hub = convert(model, tmp_path / "out", layers="per-layer"), load_folder(model)
    same = {
        "language_model.decoder.final_layernorm.weight": "model.language_model.norm.weight",
        "language_model.output_layer.weight": "lm_head.weight",
        "vision_model.merger.patch_norm.weight": "model.visual.merger.ln_q.weight",
        "vision_model.merger.linear_fc1.bias": "model.visual.merger.mlp.0.bias",
        "vision_model.merger.linear_fc2.weight": "model.visual.merger.mlp.2.weight",
        "vision_model.patch_embed.proj.weight": "model.visual.patch_embed.proj.weight",
        "language_model.mtp.layers.0.enorm.weight": "mtp.pre_fc_norm_embedding.weight",
        "language_model.mtp.layers.0.hnorm.weight": "mtp.pre_fc_norm_hidden.weight",
        "language_model.mtp.layers.0.eh_proj.weight": "mtp.fc.weight",
        "language_model.mtp.layers.0.final_layernorm.weight": "mtp.norm.weight",
        "language_model.mtp.layers.0.transformer_layer.mlp.linear_fc2.weight": (
            "mtp.layers.0.mlp.down_proj.weight"
        ),
    }
    for ours, theirs in same.items():
        assert torch.equal(found[ours], hub[theirs]), ours


@pytest.mark.parametrize("layers", ["", "per-layer"])
def test_there_and_back_is_the_identity(model, tmp_path, layers):
    convert(model, tmp_path / "there", layers=layers, vocab_multiple=64)
    back = MergeOptions(config=model, write=UNSYNCED)
    merge_megatron(tmp_path / "there", tmp_path / "back", back)
    assert_same(load_folder(tmp_path / "back"), load_folder(model))


@pytest.mark.real
def test_megatron_core_loads_it(model, tmp_path):
    checked = WriteOptions(fsync=False, check_load=True)
    result = convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=checked))
    around = ("vision_model.patch_embed.", "vision_model.merger.")
    known = [n for n in open_checkpoint(tmp_path / "out") if not n.startswith(around)]
    assert result.load_check.num_tensors == len(known)
