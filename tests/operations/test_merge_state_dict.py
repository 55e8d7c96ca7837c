"""Merges of one file of torch.save: the model in it, whatever is around and beside it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_tool import MergeOptions, merge_dcp, verify_checkpoint
from ckpt_tool.common.errors import CheckpointError, MappingError, UsageError
from ckpt_tool.operations.options import NameOptions, ToMcoreOptions
from ckpt_tool.operations.to_mcore import plan_to_mcore
from ckpt_tool.plans.options import WriteOptions
from tests.support.merging import assert_same, load_folder

FIXTURE = Path(__file__).parents[1] / "fixtures" / "lightning2.6_ckpt"
LLAMA = json.loads((FIXTURE / "config.json").read_text())
STATE = load_file(FIXTURE / "reference.safetensors")


def merged(folder: Path, state: object, prefix: str = "", config: object = LLAMA) -> dict:
    """What a merge of this file writes; the config lies beside it."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "checkpoint.pt")
    (folder / "config.json").write_text(json.dumps(config))
    options = MergeOptions(names=NameOptions(prefix), write=WriteOptions(check_load=False))
    merge_dcp(folder / "checkpoint.pt", folder / "out", options)
    return load_folder(folder / "out")


def under(prefix: str, state: dict) -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1.0}]}
WHOLE = {
    "a state dict": STATE,
    "model": {"model": STATE, "optimizer": OPTIMIZER, "step": 3},
    "as torch's tutorial": {
        "epoch": 1,
        "model_state_dict": STATE,
        "optimizer_state_dict": OPTIMIZER,
        "scaler_state_dict": {"scale": torch.ones(1)},
    },
    "as Lightning": {
        "state_dict": under("model.", STATE),
        "optimizer_states": [OPTIMIZER],
        "callbacks": {"Best{'a': 1}": {"best_model_score": torch.ones(1)}},
    },
    "as DeepSpeed": {"module": STATE, "ds_config": {"a": 1}, "rng_states": [torch.ones(4)]},
    "of DistributedDataParallel": {"model": under("module.", STATE)},
    "compiled": {"model": under("_orig_mod.", STATE)},
    "twice around": {"app": {"model": STATE}, "optim": OPTIMIZER},
}


@pytest.mark.parametrize("state", WHOLE.values(), ids=WHOLE)
def test_the_model_is_found(tmp_path, state):
    assert_same(merged(tmp_path, state), STATE)


def test_a_checkpoint_of_lightning(tmp_path):
    merge_dcp(FIXTURE / "last.ckpt", tmp_path / "out")
    assert_same(load_folder(tmp_path / "out"), STATE)
    found = verify_checkpoint(FIXTURE / "last.ckpt", FIXTURE / "reference.safetensors")
    assert (found.equal, found.num_compared) == (True, len(STATE))
    assert any("optimizer_states.*" in warning for warning in found.left.warnings)


def test_names_of_a_model_that_begins_with_others_stay(tmp_path):
    """Only what is known to be around a model goes: BERT's embeddings are below its own name."""
    state = {"bert.embeddings.word_embeddings.weight": torch.ones(4, 2), "cls.bias": torch.ones(4)}
    torch.save({"model": state}, tmp_path / "checkpoint.pt")
    options = MergeOptions(keep_names=True)
    merge_dcp(tmp_path / "checkpoint.pt", tmp_path / "out", options)
    assert_same(load_folder(tmp_path / "out"), state)


def test_several_models_have_to_be_chosen_from(tmp_path):
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    whole = {"model": STATE, "ema": other}
    with pytest.raises(UsageError, match=r"several state dicts.*'ema\.', 'model\.'"):
        merged(tmp_path, whole)
    assert not (tmp_path / "out").exists()
    assert_same(merged(tmp_path, whole, "ema"), other)


def test_tensors_beside_the_model_are_named(tmp_path):
    whole = {"model": STATE, "loss": {"weight": torch.ones(2)}}
    with pytest.raises(MappingError, match=r"1 tensor beside the model") as refused:
        merged(tmp_path, whole)
    assert refused.value.names == ("loss.weight",)
    assert not (tmp_path / "out").exists()
    assert_same(merged(tmp_path, whole, "model"), STATE)


def test_a_file_without_weights_says_what_it_has(tmp_path):
    with pytest.raises(CheckpointError, match=r"optimizer\.\* \(state of training"):
        merged(tmp_path, {"optimizer": OPTIMIZER, "step": 3})


def test_what_the_model_lacks_is_said(tmp_path):
    short = {name: tensor for name, tensor in STATE.items() if "up_proj" not in name}
    torch.save({"model": short}, tmp_path / "checkpoint.pt")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(MappingError, match="LlamaForCausalLM") as refused:
        merge_dcp(tmp_path / "checkpoint.pt", tmp_path / "out")
    assert "up_proj" in "".join(refused.value.names)
    assert not (tmp_path / "out").exists()


def test_megatron_takes_the_model_too(tmp_path):
    torch.save({"model": STATE, "optimizer": OPTIMIZER}, tmp_path / "checkpoint.pt")
    options = ToMcoreOptions(config=FIXTURE)
    assert plan_to_mcore(tmp_path / "checkpoint.pt", options).model.keys() == STATE.keys()
