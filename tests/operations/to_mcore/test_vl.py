"""`to-mcore` of Qwen2.5-VL: the vision tower beside the language model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from ckpt_tool import (
    MappingError,
    MergeOptions,
    ToMcoreOptions,
    UsageError,
    convert_to_mcore,
    merge_megatron,
)
from tests.operations.to_mcore.test_inputs import (
    Tensors,
    archives,
    assert_same,
    convert,
    loaded,
    rewritten,
)
from tests.real.fill import fill_distinct
from tests.support.merging import load_folder
from tests.support.versions import require_transformers_5

DEPTH, LAYERS = 3, 4
HEADS, GROUPS, VISION_HEADS = 4, 2, 4
TEXT = {
    "vocab_size": 251,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "depth": DEPTH,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": VISION_HEADS,
    "out_hidden_size": 64,
    "fullatt_block_indexes": [1],
    "patch_size": 4,
    "window_size": 16,
}
TOKENS = {
    "vision_start_token_id": 3,
    "vision_end_token_id": 4,
    "image_token_id": 5,
    "video_token_id": 6,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_transformers_5()
    kind = type(AutoConfig.for_model("qwen2_5_vl"))
    built = Qwen2_5_VLForConditionalGeneration(
        kind(text_config=TEXT, vision_config=VISION, tie_word_embeddings=False, **TOKENS)
    )
    fill_distinct(built)
    hf = tmp_path_factory.mktemp("vl") / "hf"
    built.save_pretrained(hf, max_shard_size="100KB")
    assert len(list(hf.glob("*.safetensors"))) > 2
    return hf


def language_layer(hf: Tensors, layer: int) -> Tensors:
    old = {
        name.removeprefix(f"model.layers.{layer}."): tensor
        for name, tensor in hf.items()
        if name.startswith(f"model.layers.{layer}.")
    }
    found = {
        "self_attention.linear_qkv.layer_norm_weight": old["input_layernorm.weight"],
        "self_attention.linear_proj.weight": old["self_attn.o_proj.weight"],
        "mlp.linear_fc1.layer_norm_weight": old["post_attention_layernorm.weight"],
        "mlp.linear_fc1.weight": torch.cat(
            [old["mlp.gate_proj.weight"], old["mlp.up_proj.weight"]]
        ),
        "mlp.linear_fc2.weight": old["mlp.down_proj.weight"],
    }
    for kind in ("weight", "bias"):
        parts = [old[f"self_attn.{x}_proj.{kind}"] for x in "qkv"]
        split = [part.view(GROUPS, -1, *part.shape[1:]) for part in parts]
        found[f"self_attention.linear_qkv.{kind}"] = torch.cat(split, 1).flatten(0, 1)
    return found


def vision_block(hf: Tensors, block: int) -> Tensors:
    prefix = f"visual.blocks.{block}."
    old = {n.removeprefix(prefix): t for n, t in hf.items() if n.startswith(prefix)}
    found = {
        "self_attention.linear_qkv.layer_norm_weight": old["norm1.weight"],
        "mlp.linear_fc1.layer_norm_weight": old["norm2.weight"],
    }
    for kind in ("weight", "bias"):
        qkv = old[f"attn.qkv.{kind}"]
        by_head = qkv.view(3, VISION_HEADS, -1, *qkv.shape[1:]).transpose(0, 1)
        found[f"self_attention.linear_qkv.{kind}"] = by_head.reshape(qkv.shape)
        found[f"self_attention.linear_proj.{kind}"] = old[f"attn.proj.{kind}"]
        gate_up = [old[f"mlp.{part}_proj.{kind}"] for part in ("gate", "up")]
        found[f"mlp.linear_fc1.{kind}"] = torch.cat(gate_up)
        found[f"mlp.linear_fc2.{kind}"] = old[f"mlp.down_proj.{kind}"]
    return found


def by_hand(hf: Tensors, layout: str) -> Tensors:
    """Everything that the checkpoint has to have."""
    merger = "vision_model.projection.encoder.linear_fc"
    found = {
        "language_model.embedding.word_embeddings.weight": hf["model.embed_tokens.weight"],
        "language_model.decoder.final_layernorm.weight": hf["model.norm.weight"],
        "language_model.output_layer.weight": hf["lm_head.weight"],
        "vision_model.patch_embed.proj.weight": hf["visual.patch_embed.proj.weight"],
        "vision_model.decoder.final_layernorm.weight": hf["visual.merger.ln_q.weight"],
    }
    for kind in ("weight", "bias"):
        found[f"{merger}1.{kind}"] = hf[f"visual.merger.mlp.0.{kind}"]
        found[f"{merger}2.{kind}"] = hf[f"visual.merger.mlp.2.{kind}"]
    for prefix, layers in (
        ("language_model.decoder.layers.", [language_layer(hf, n) for n in range(LAYERS)]),
        ("vision_model.decoder.layers.", [vision_block(hf, n) for n in range(DEPTH)]),
    ):
        if layout == "stacked":
            found |= {prefix + n: torch.stack([one[n] for one in layers]) for n in layers[0]}
        else:
            for number, one in enumerate(layers):
                found |= {f"{prefix}{number}.{n}": tensor for n, tensor in one.items()}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["stacked", "per-layer"])
def test_every_tensor_of_both_parts(model, tmp_path, layout):
    hf = load_folder(model)
    convert(model, tmp_path / "out", layers=layout, tower="megatron")
    expected = by_hand(hf, layout)
    assert sum(t.numel() for t in expected.values()) == sum(t.numel() for t in hf.values())
    assert_same(loaded(tmp_path / "out"), expected)


@pytest.mark.slow
def test_layers_are_stacked_by_default(model, tmp_path):
    convert(model, tmp_path / "out")
    convert(model, tmp_path / "reference", layers="stacked")
    assert archives(tmp_path / "out") == archives(tmp_path / "reference")


def test_a_config_of_the_old_style_gives_the_same(model, tmp_path):
    raw = json.loads((model / "config.json").read_text())
    assert raw["text_config"]["num_hidden_layers"] == LAYERS
    flat = {**raw.pop("text_config"), **raw}
    assert flat["model_type"] == "qwen2_5_vl"
    old = rewritten(model, tmp_path / "hf")
    (old / "config.json").write_text(json.dumps(flat))
    convert(old, tmp_path / "out")
    convert(model, tmp_path / "reference")
    assert archives(tmp_path / "out") == archives(tmp_path / "reference")


def test_names_as_transformers_5_has_them_in_memory(model, tmp_path):
    def in_memory(name: str) -> str:
        if name.startswith("visual."):
            return f"model.{name}"
        return name.replace("model.", "model.language_model.", 1)

    new = rewritten(model, tmp_path / "hf")
    tensors = {in_memory(name): tensor for name, tensor in load_folder(model).items()}
    assert "model.language_model.norm.weight" in tensors
    save_file(tensors, new / "model.safetensors")
    convert(new, tmp_path / "out")
    convert(model, tmp_path / "reference")
    assert archives(tmp_path / "out") == archives(tmp_path / "reference")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "tower"), [("", "megatron"), ("per-layer", "megatron"), ("", "")]
)
def test_there_and_back_is_the_identity(model, tmp_path, layers, tower):
    convert_to_mcore(model, tmp_path / "there", ToMcoreOptions(layers=layers, tower=tower))
    merge_megatron(tmp_path / "there", tmp_path / "back", MergeOptions(config=model))
    expected = load_folder(model)
    found = load_folder(tmp_path / "back")
    assert any(name.startswith("visual.") for name in found)
    assert_same(found, expected)
    _, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("tower", ["", "transformers"])
def test_megatron_bridge_has_the_tower_of_transformers(model, tmp_path, tower):
    hf = load_folder(model)
    convert(model, tmp_path / "out", layers="per-layer", tower=tower)
    language = by_hand(hf, "per-layer")
    expected = {n: t for n, t in language.items() if n.startswith("language_model.")}
    expected |= {n: t for n, t in hf.items() if n.startswith("visual.")}
    assert_same(loaded(tmp_path / "out"), expected)


def test_a_tower_that_the_family_has_not_is_refused(model, tmp_path):
    with pytest.raises(UsageError, match="`tower='mine'`: expected one of megatron, transformers"):
        convert(model, tmp_path / "out", tower="mine")
    raw = json.loads((model / "config.json").read_text())
    other = rewritten(model, tmp_path / "hf")
    save_file(load_folder(model), other / "model.safetensors")
    (other / "config.json").write_text(json.dumps(raw | {"model_type": "qwen2_vl"}))
    with pytest.raises(MappingError, match="a qwen2_vl has no tower that is written so"):
        convert(other, tmp_path / "out", tower="megatron")
