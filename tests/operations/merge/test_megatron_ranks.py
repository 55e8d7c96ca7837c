"""Files that Megatron's ranks saved each for itself, against the models that they are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_tool import MergeOptions, merge_megatron, verify_checkpoint
from ckpt_tool.common.errors import MappingError
from ckpt_tool.readers import open_checkpoint
from tests.support import megatron
from tests.support.megatron import RANK_FILES
from tests.support.verl_ranks import write_verl_03


@pytest.mark.parametrize(("name", "size"), RANK_FILES, ids=str)
def test_what_real_ranks_saved_is_the_model_bit_for_bit(megatron_cases, name, size):
    reference = megatron.hf(megatron_cases, name)
    result = verify_checkpoint(megatron.ranks(megatron_cases, name, size), reference)
    assert result.equal
    assert result.exact
    assert result.num_compared == len(open_checkpoint(reference))


VERL_03 = {
    "llama-1": ("llama", {}),
    "llama-tp2": ("llama", {"tp": 2}),
    "llama-tp2-pp2": ("llama", {"tp": 2, "pp": 2}),
    "llama-vpp2": ("llama", {"pp": 2, "vpp": 2}),
    "qwen2-1": ("qwen2", {}),
    "qwen2-tp2": ("qwen2", {"tp": 2}),
    "qwen2-tp2-pp2-vpp2": ("qwen2", {"tp": 2, "pp": 2, "vpp": 2}),
}


@pytest.mark.parametrize(("name", "sizes"), VERL_03.values(), ids=VERL_03)
def test_verl_03_bit_for_bit(megatron_cases, tmp_path, name, sizes):
    reference = megatron.hf(megatron_cases, name)
    folder = write_verl_03(reference, tmp_path / "actor", **sizes)
    result = verify_checkpoint(folder, reference)
    assert result.equal
    assert result.exact
    assert result.num_compared == len(open_checkpoint(reference))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("llama", "tp2_pp2"),
        ("qwen2", "pp2"),
        ("qwen3_moe", "etp2_ep2"),
        ("deepseek_v3_mtp", "tp2_pp2"),
    ],
    ids=str,
)
def test_merged_they_are_the_folder_they_came_from(megatron_cases, tmp_path, name, size):
    reference = megatron.hf(megatron_cases, name)
    options = MergeOptions(config=reference, write=megatron.UNSYNCED)
    merge_megatron(megatron.ranks(megatron_cases, name, size), tmp_path / "out", options)
    expected, found = open_checkpoint(reference), open_checkpoint(tmp_path / "out")
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key].read(), tensor.read()), key


@pytest.mark.parametrize("style", ["verl 0.3", "verl 0.4"])
def test_a_value_models_head_has_one_row_on_every_rank(megatron_cases, tmp_path, style):
    """verl's critics score with `LinearForLastLayer`, of one row, which nothing cuts."""
    source, model = megatron.hf(megatron_cases, "llama"), tmp_path / "hf"
    model.mkdir()
    tensors = {}
    for file in source.glob("*.safetensors"):
        tensors |= load_file(file)
    head = tensors.pop("lm_head.weight")[:1].clone()
    config = json.loads((source / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config))
    if style == "verl 0.3":
        save_file(tensors | {"lm_head.weight": head}, model / "model.safetensors")
        folder = write_verl_03(model, tmp_path / "critic", tp=2, pp=2)
    else:
        folder = tmp_path / "critic"
        ranks = megatron.ranks(megatron_cases, "llama", "tp2")
        for path in sorted(ranks.glob("model/*/model.pt")):
            (state,) = torch.load(path, weights_only=False)
            copy = folder / "model" / path.parent.name / "model.pt"
            copy.parent.mkdir(parents=True)
            torch.save([dict(state) | {"output_layer.weight": head}], copy)
    save_file(tensors | {"score.weight": head}, model / "model.safetensors")
    result = verify_checkpoint(folder, model)
    assert result.equal, (result.missing, result.unexpected)
    assert result.num_compared == len(tensors) + 1


def test_a_tied_head_that_is_not_the_embedding_is_refused(megatron_cases, tmp_path):
    folder = write_verl_03(megatron.hf(megatron_cases, "qwen2"), tmp_path / "actor", pp=2)
    path = folder / "model" / "mp_rank_00_001" / "model.pt"
    (state,) = torch.load(path)
    state["lm_head.weight"][3, 5] += 1
    torch.save([state], path)
    with pytest.raises(MappingError, match=r"ties lm_head\.weight"):
        merge_megatron(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes", [{"num_attention_heads": 8}, {"num_key_value_heads": 1}, {"head_dim": 8}], ids=str
)
def test_fused_heads_are_held_against_the_config(megatron_cases, tmp_path, changes):
    folder = write_verl_03(megatron.hf(megatron_cases, "qwen2"), tmp_path / "actor", tp=2)
    path: Path = folder / "hf_config_and_tokenizer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(MappingError, match="query, key and value") as refused:
        merge_megatron(folder, tmp_path / "out")
    assert len(refused.value.names) == 8  # weight and bias of four layers
    assert "qkv_proj.bias: [2, 64]" in refused.value.names[0]


def test_ranks_of_ms_swift_are_told_by_the_norm_of_delta_net(megatron_cases, tmp_path):
    source = megatron.ranks(megatron_cases, "qwen3_next", "tp2")
    folder = Path(shutil.copytree(source, tmp_path / "actor"))
    for path in folder.glob("model/*/model.pt"):
        (state,) = torch.load(path, weights_only=False)
        norms = [name for name in state if name.endswith("out_norm.weight")]
        assert norms
        torch.save([dict(state) | {name: state[name] + 1 for name in norms}], path)
    with pytest.raises(MappingError, match=r"are ms-swift's by") as caught:
        merge_megatron(folder, tmp_path / "out")
    assert "torch_dist" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()
