"""MiniMax-M3: the indexers of some layers are beside the model, its tower is transformers' own."""

import json
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
from ckpt_tool.common.errors import MappingError
from tests.real.fill import fill_distinct
from tests.support.merging import assert_same, load_folder

UNSYNCED = WriteOptions(fsync=False, check_load=False)
TOWERS = ("vision_tower.", "multi_modal_projector.", "patch_merge_mlp.")
#: The widths of the dense MLP, of experts and of the shared one differ.
TEXT = {
    "model_type": "minimax_m3_vl_text",
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 24,
    "dense_intermediate_size": 40,
    "shared_intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "rotary_dim": 4,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "layer_types": ["full_attention", "minimax_m3_sparse", "full_attention"],
    "index_n_heads": 2,
    "index_head_dim": 6,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not hasattr(transformers, "MiniMaxM3VLConfig"):
        pytest.skip("transformers has no MiniMax-M3")
    config = transformers.MiniMaxM3VLConfig(
        text_config=TEXT, vision_config=VISION, projector_hidden_size=28
    )
    model = transformers.MiniMaxM3SparseForConditionalGeneration(config)
    fill_distinct(model)
    folder = tmp_path_factory.mktemp("minimax") / "hf"
    model.save_pretrained(folder)
    return folder


def say(made: Path, folder: Path, **changes) -> Path:
    """The same weights with another config of the language model; None: a key less."""
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(made / "model.safetensors")
    config = json.loads((made / "config.json").read_text())
    text = config["text_config"] | changes
    config["text_config"] = {key: value for key, value in text.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def convert(model: Path, out: Path, **options) -> dict[str, torch.Tensor]:
    convert_to_mcore(model, out, ToMcoreOptions(write=UNSYNCED, **options))
    return {name: tensor.read() for name, tensor in open_checkpoint(out).items()}


def test_names_are_those_of_megatron_bridge(made, tmp_path):
    found, hub = convert(made, tmp_path / "out"), load_folder(made)
    ours, theirs = "language_model.decoder.layers.", "language_model.model.layers."
    same = {
        "language_model.output_layer.weight": "language_model.lm_head.weight",
        f"{ours}0.mlp.linear_fc2.weight": f"{theirs}0.mlp.down_proj.weight",
        f"{ours}1.self_attention.q_layernorm.weight": f"{theirs}1.self_attn.q_norm.weight",
        f"{ours}1.mlp.router.expert_bias": (f"{theirs}1.block_sparse_moe.e_score_correction_bias"),
        f"{ours}2.mlp.shared_experts.linear_fc2.weight": (
            f"{theirs}2.block_sparse_moe.shared_experts.down_proj.weight"
        ),
        "lightning_indexers.1.q_proj.weight": f"{theirs}1.self_attn.index_q_proj.weight",
        "lightning_indexers.1.k_proj.weight": f"{theirs}1.self_attn.index_k_proj.weight",
        "lightning_indexers.1.q_norm.weight": f"{theirs}1.self_attn.index_q_norm.weight",
        "lightning_indexers.1.k_norm.weight": f"{theirs}1.self_attn.index_k_norm.weight",
    }
    same |= {name: name for name in hub if name.startswith(TOWERS)}
    for key, name in same.items():
        assert torch.equal(found[key], hub[name]), key
    assert [n for n in found if n.startswith("lightning") and ".1." not in n] == []
    gate, up = (hub[f"{theirs}1.block_sparse_moe.experts.2.w{n}.weight"] for n in (1, 3))
    experts = found[f"{ours}1.mlp.experts.experts.linear_fc1.weight"]
    assert torch.equal(experts[2], torch.cat([gate, up]))


RELEASED = {
    "layer_types": None,
    "mlp_layer_types": None,
    "moe_layer_freq": [0, 1, 1],
    "sparse_attention_config": {"sparse_attention_freq": [0, 1, 0]},
}


@pytest.mark.parametrize("said", [{}, RELEASED], ids=["by transformers", "as released"])
def test_there_and_back_is_the_identity(made, tmp_path, said):
    model = say(made, tmp_path / "hf", **said)
    convert(model, tmp_path / "there", vocab_multiple=64)
    back = MergeOptions(config=model, write=UNSYNCED)
    merge_megatron(tmp_path / "there", tmp_path / "back", back)
    assert_same(load_folder(tmp_path / "back"), load_folder(made))


@pytest.mark.parametrize(
    "kinds", [["full_attention"], ["full_attention", "linear_attention", "full_attention"]]
)
def test_layers_that_cannot_be_are_refused(made, tmp_path, kinds):
    model = say(made, tmp_path / "hf", layer_types=kinds)
    with pytest.raises(MappingError, match="for each of 3 layers"):
        convert(model, tmp_path / "out")


@pytest.mark.real
def test_megatron_core_loads_the_language_model(made, tmp_path):
    checked = WriteOptions(fsync=False, check_load=True)
    result = convert_to_mcore(made, tmp_path / "out", ToMcoreOptions(write=checked))
    language = [n for n in open_checkpoint(tmp_path / "out") if n.startswith("language_model.")]
    assert result.load_check.num_tensors == len(language)
