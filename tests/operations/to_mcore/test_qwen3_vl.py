"""Qwen3-VL: a tower with mergers beside the language model, by Megatron-Bridge's names."""

import re
from pathlib import Path

import pytest
import torch
import transformers

from ckpt_tool import (
    MergeOptions,
    ToMcoreOptions,
    WriteOptions,
    convert_to_mcore,
    merge_megatron,
    open_checkpoint,
)
from ckpt_tool.mapping.config import load_config
from ckpt_tool.mapping.megatron.convert import restore_model
from tests.support.merging import assert_same, load_folder
from tests.support.saved import assert_equal, write_tensors
from tests.support.tiny_models import build
from tests.support.versions import require_transformers_5

Tensors = dict[str, torch.Tensor]
UNSYNCED = WriteOptions(fsync=False)
CHECKED = WriteOptions(fsync=False, check_load=True)
HEADS = 2

#: Rows of Megatron-Bridge 0.6.2 of one tensor on both sides: its name, and that on the Hub.
BRIDGE = """
language_model.embedding.word_embeddings.weight | model.language_model.embed_tokens.weight
language_model.output_layer.weight | lm_head.weight
language_model.decoder.final_layernorm.weight | model.language_model.norm.weight
language_model.decoder.layers.*.self_attention.linear_qkv.layer_norm_weight \
| model.language_model.layers.*.input_layernorm.weight
language_model.decoder.layers.*.mlp.linear_fc1.layer_norm_weight \
| model.language_model.layers.*.post_attention_layernorm.weight
language_model.decoder.layers.*.self_attention.linear_proj.weight \
| model.language_model.layers.*.self_attn.o_proj.weight
language_model.decoder.layers.*.mlp.linear_fc2.weight \
| model.language_model.layers.*.mlp.down_proj.weight
language_model.decoder.layers.*.self_attention.q_layernorm.weight \
| model.language_model.layers.*.self_attn.q_norm.weight
language_model.decoder.layers.*.self_attention.k_layernorm.weight \
| model.language_model.layers.*.self_attn.k_norm.weight
vision_model.decoder.layers.*.self_attention.linear_proj.? | model.visual.blocks.*.attn.proj.?
vision_model.decoder.layers.*.mlp.linear_fc1.? | model.visual.blocks.*.mlp.linear_fc1.?
vision_model.decoder.layers.*.mlp.linear_fc2.? | model.visual.blocks.*.mlp.linear_fc2.?
vision_model.decoder.layers.*.self_attention.linear_qkv.layer_norm_? | model.visual.blocks.*.norm1.?
vision_model.decoder.layers.*.mlp.linear_fc1.layer_norm_? | model.visual.blocks.*.norm2.?
vision_model.decoder.deepstack_merger_list.*.patch_norm.? \
| model.visual.deepstack_merger_list.*.norm.?
vision_model.decoder.deepstack_merger_list.*.linear_fc1.? \
| model.visual.deepstack_merger_list.*.linear_fc1.?
vision_model.decoder.deepstack_merger_list.*.linear_fc2.? \
| model.visual.deepstack_merger_list.*.linear_fc2.?
vision_model.merger.patch_norm.? | model.visual.merger.norm.?
vision_model.merger.linear_fc1.? | model.visual.merger.linear_fc1.?
vision_model.merger.linear_fc2.? | model.visual.merger.linear_fc2.?
vision_model.patch_embed.proj.? | model.visual.patch_embed.proj.?
vision_model.pos_embed.weight | model.visual.pos_embed.weight
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_transformers_5()
    hf = tmp_path_factory.mktemp("qwen3_vl") / "hf"
    build("qwen3_vl").save_pretrained(hf)
    return hf


def rename(hub: Tensors, rows: str = BRIDGE) -> Tensors:
    """What the rows of one tensor say, each used; taken out of ``hub``."""
    found = {}
    for line in rows.strip().splitlines():
        ours, theirs = (part.strip() for part in line.split("|"))
        pattern = re.escape(theirs).replace(r"\*", r"(\d+)").replace(r"\?", "(weight|bias)")
        matched = [one for name in hub if (one := re.fullmatch(pattern, name))]
        assert matched, line
        for one in matched:
            parts = iter(one.groups())
            name = re.sub(r"[*?]", lambda _, parts=parts: next(parts), ours)
            found[name] = hub.pop(one[0])
    return found


def by_hand(model: Path, rows: str = BRIDGE) -> Tensors:
    """The checkpoint with a key for each layer."""
    hub = load_folder(model)
    found = rename(hub, rows)
    for layer in range(2):
        old, own = (
            f"model.language_model.layers.{layer}.",
            f"language_model.decoder.layers.{layer}.",
        )
        q, k, v = (hub.pop(f"{old}self_attn.{part}_proj.weight") for part in "qkv")
        groups = torch.cat([part.unflatten(0, (2, -1)) for part in (q, k, v)], 1)
        found[f"{own}self_attention.linear_qkv.weight"] = groups.flatten(0, 1)
        if f"{old}mlp.gate_proj.weight" in hub:
            gate_up = [hub.pop(f"{old}mlp.{part}_proj.weight") for part in ("gate", "up")]
            found[f"{own}mlp.linear_fc1.weight"] = torch.cat(gate_up)
        for kind in ("weight", "bias"):
            qkv = hub.pop(f"model.visual.blocks.{layer}.attn.qkv.{kind}")
            by_head = qkv.unflatten(0, (3, HEADS, -1)).transpose(0, 1).flatten(0, 2)
            name = f"vision_model.decoder.layers.{layer}.self_attention.linear_qkv.{kind}"
            found[name] = by_head
    assert hub == {}
    return found


def test_every_tensor_by_the_names_of_megatron_bridge(model, tmp_path):
    convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(layers="per-layer", write=UNSYNCED))
    found = {name: tensor.read() for name, tensor in open_checkpoint(tmp_path / "out").items()}
    assert_same(found, by_hand(model))


@pytest.mark.parametrize("layers", ["", "per-layer"])
def test_there_and_back_is_the_identity(model, tmp_path, layers):
    there = ToMcoreOptions(layers=layers, vocab_multiple=64, write=UNSYNCED)
    convert_to_mcore(model, tmp_path / "there", there)
    back = MergeOptions(config=model, write=CHECKED)
    result = merge_megatron(tmp_path / "there", tmp_path / "back", back)
    assert result.load_check.num_tensors == len(load_folder(model))
    assert_same(load_folder(tmp_path / "back"), load_folder(model))
    _, report = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_the_tower_may_be_laid_out_otherwise_than_the_language_model(model, tmp_path):
    """As where megatron-core is given a list of layer kinds for the one and not for the other."""
    tensors = by_hand(model)
    blocks = [name for name in tensors if name.startswith("vision_model.decoder.layers.0.")]
    for name in blocks:
        both = [tensors.pop(name.replace("layers.0.", f"layers.{n}.")) for n in (0, 1)]
        tensors[name.replace("layers.0.", "layers.")] = torch.stack(both)
    found = restore_model(write_tensors(tmp_path / "m.safetensors", tensors), load_config(model))
    assert_equal(found.tensors, load_folder(model))


@pytest.mark.real
@pytest.mark.parametrize("layers", ["", "per-layer"])
def test_modules_of_megatron_core_load_it(model, tmp_path, layers):
    """The language model and the tower's blocks; what is around these is of no such module."""
    options = ToMcoreOptions(layers=layers, write=CHECKED)
    result = convert_to_mcore(model, tmp_path / "out", options)
    assert result.load_check.architecture == "GPTModel and vision tower (its blocks)"
    around = r"vision_model\.(patch_embed|pos_embed|merger|decoder\.deepstack_merger_list)\."
    inside = [name for name in open_checkpoint(tmp_path / "out") if not re.match(around, name)]
    assert len([name for name in inside if name.startswith("vision_model.decoder.layers.")]) >= 12
    assert result.load_check.num_tensors == len(inside)
