"""`to-mcore --layout megatron-lm`: the folder that Megatron-LM's `--load` takes."""

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata
from typer.testing import CliRunner, Result

from ckpt_tool import open_checkpoint, verify_checkpoint
from ckpt_tool.cli.app import app
from ckpt_tool.common.errors import MappingError
from tests.operations.to_mcore.test_inputs import archives, assert_same, convert, loaded, rewritten
from tests.real.megatron_models import write_model
from tests.support.merging import load_folder

DENSE, MOE = "qwen3", "qwen3_moe"
LATENT = "deepseek_v3"
TRACKER = "latest_checkpointed_iteration.txt"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("models")
    return {name: write_model(name, out / name) for name in (DENSE, MOE, LATENT)}


@pytest.fixture(scope="module")
def folders(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("folders")
    for name, hf in models.items():
        convert(hf, out / name, layout="megatron-lm")
    return {name: out / name for name in models}


def ckpt(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, list(map(str, words)))


def common(folder: Path) -> dict[str, Any]:
    """common.pt as a loader reads it that trusts nothing but the arguments' class."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        found = torch.load(folder / "release" / "common.pt", weights_only=True)
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [DENSE, MOE, LATENT])
def test_the_folder_is_a_release(folders, name):
    folder = folders[name]
    assert (folder / TRACKER).read_bytes() == b"release"
    assert sorted(path.name for path in folder.iterdir()) == [
        "ckpt_manifest.json",
        TRACKER,
        "release",
    ]
    found = {path.name for path in (folder / "release").iterdir()}
    assert found == {".metadata", "metadata.json", "common.pt", *archives(folder)}
    said = json.loads((folder / "release" / "metadata.json").read_text())
    assert said["sharded_backend"] == "torch_dist"
    where: Metadata = pickle.loads((folder / "release" / ".metadata").read_bytes())
    assert {place.relative_path for place in where.storage_data.values()} == set(archives(folder))


EXPECTED = {
    DENSE: {
        "kv_channels": 24,
        "num_query_groups": 2,
        "group_query_attention": True,
        "ffn_hidden_size": 96,
        "qk_layernorm": True,
        "multi_latent_attention": False,
    },
    MOE: {
        "kv_channels": 24,
        "num_query_groups": 2,
        "num_experts": 4,
        "moe_router_topk": 2,
        "moe_ffn_hidden_size": 40,
        "moe_layer_freq": [1, 1, 1, 1],
        "moe_router_score_function": "softmax",
    },
    LATENT: {
        "num_experts": 8,
        "moe_layer_freq": [0, 1, 1, 1],
        "moe_shared_expert_intermediate_size": 80,
        "moe_router_score_function": "sigmoid",
        "moe_router_topk_scaling_factor": 1.7,
        "multi_latent_attention": True,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_head_dim": 12,
        "qk_pos_emb_head_dim": 8,
        "v_head_dim": 14,
    },
}
SHARED = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 251,
    "padded_vocab_size": 251,
    "max_position_embeddings": 64,
    "rotary_base": 50000,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "untie_embeddings_and_output_weights": True,
    "add_bias_linear": False,
    "swiglu": True,
    "normalization": "RMSNorm",
}


@pytest.mark.parametrize("name", [DENSE, MOE, LATENT])
def test_what_megatron_reads_beside_the_tensors(folders, name):
    state = common(folders[name])
    assert isinstance(state["args"], argparse.Namespace)
    args, expected = vars(state["args"]), SHARED | EXPECTED[name]
    assert {key: args.get(key) for key in expected} == expected
    assert state["iteration"] == 1
    assert state["checkpoint_version"] == 3.0
    assert state["content_metadata"]["non_homogeneous_layers"] is (name != DENSE)


def test_a_dense_model_has_no_experts_in_its_arguments(folders):
    args = vars(common(folders[DENSE])["args"])
    assert not [key for key in args if "expert" in key and args[key] not in (None, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), [(DENSE, ""), (MOE, "per-layer"), (LATENT, "")])
def test_the_tensors_are_those_of_the_bare_layout(models, folders, tmp_path, name, layers):
    convert(models[name], tmp_path / "bare", layers=layers)
    assert archives(folders[name]) == archives(tmp_path / "bare")
    assert_same(loaded(folders[name] / "release"), loaded(tmp_path / "bare"))
    per_layer = [key for key in loaded(tmp_path / "bare") if key.startswith("decoder.layers.3.")]
    assert bool(per_layer) == (name != DENSE)


def test_layers_of_experts_are_stacked_where_that_is_asked_for(models, tmp_path):
    convert(models[MOE], tmp_path / "out", layout="megatron-lm", layers="stacked")
    assert common(tmp_path / "out")["content_metadata"]["non_homogeneous_layers"] is False
    assert loaded(tmp_path / "out" / "release")[
        "decoder.layers.mlp.experts.experts.linear_fc1.weight"
    ].shape == (4, 4, 80, 64)


def test_padding_is_in_the_arguments(models, tmp_path):
    convert(models[DENSE], tmp_path / "out", layout="megatron-lm", vocab_multiple=128)
    args = common(tmp_path / "out")["args"]
    assert (args.vocab_size, args.padded_vocab_size) == (251, 256)
    found = loaded(tmp_path / "out" / "release")["embedding.word_embeddings.weight"]
    assert found.shape == (args.padded_vocab_size, args.hidden_size)


@pytest.mark.slow
@pytest.mark.parametrize("name", [DENSE, MOE, LATENT])
def test_other_commands_find_the_release(models, folders, name):
    for path in (folders[name], folders[name] / "release"):
        shown = ckpt("inspect", path)
        assert shown.exit_code == 0
        assert shown.stdout.startswith("megatron-core torch_dist checkpoint")
        assert set(open_checkpoint(path)) == set(loaded(folders[name] / "release"))
        assert ckpt("verify", path, models[name]).exit_code == 0
        result = verify_checkpoint(path, models[name])
        assert result.equal
        assert result.num_compared == len(load_folder(models[name]))


@pytest.mark.parametrize("config", [{"hidden_size": 128}, {"intermediate_size": 128}])
def test_arguments_that_the_tensors_contradict_are_refused(models, tmp_path, config):
    model = rewritten(models[DENSE], tmp_path / "hf", config=config)
    with pytest.raises(MappingError):
        convert(model, tmp_path / "out", layout="megatron-lm")


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
def test_a_tensor_of_another_width_is_refused(models, tmp_path, name):
    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name][..., :63].contiguous()

    model = rewritten(models[DENSE], tmp_path / "hf", narrow)
    with pytest.raises(MappingError):
        convert(model, tmp_path / "out", layout="megatron-lm")
