"""`merge dcp` of what torch.distributed.checkpoint writes: DTensors of real ranks, nested dicts."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_tool import MergeOptions, NameOptions, WriteOptions, merge_dcp, verify_checkpoint
from ckpt_tool.common.errors import CheckpointError, MappingError, UsageError
from tests.real.fsdp_cases import CASES, VALUE_HEADS
from tests.support import megatron
from tests.support.merging import assert_same, load_folder, values
from tests.support.resaving import save_dcp

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

NESTED = [
    name for name, case in CASES.items() if case.dcp_nesting is not None and name not in VALUE_HEADS
]
TITAN = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def merge(source: Path, out: Path, config: Path | None, names: NameOptions | None = None, **more):
    options = MergeOptions(
        config=config, names=names or NameOptions(), write=WriteOptions(fsync=False), **more
    )
    return merge_dcp(source, out, options)


def config_of(case: Path) -> Path:
    return case / "actor" / "huggingface"


@pytest.mark.parametrize("case", NESTED)
def test_what_real_ranks_saved_is_the_model_they_sharded(checkpoints, tmp_path, case):
    folder = checkpoints[case]
    result = merge(folder / "dcp", tmp_path / "out", config_of(folder))
    assert_same(load_folder(tmp_path / "out"), load_folder(folder / "reference"))
    assert verify_checkpoint(folder / "dcp", folder / "reference").equal
    nested = CASES[case].dcp_nesting == "app.model"
    assert any(name == "app.optim.*" for name in result.dropped) is nested


def test_names_as_they_are(checkpoints, tmp_path):
    folder = checkpoints["fsdp2_w3"]
    merge(folder / "dcp", tmp_path / "out", None, keep_names=True)
    assert_same(load_folder(tmp_path / "out"), load_file(folder / "raw_state_dict.safetensors"))


def test_accelerates_folder_is_found_with_its_config(checkpoints, tmp_path):
    folder = checkpoints["fsdp2_tied_w2"]
    shutil.copytree(folder / "dcp", tmp_path / "in" / "pytorch_model_fsdp_0")
    save_dcp({"optimizer": {"state": {"a": torch.ones(2)}}}, tmp_path / "in" / "optimizer_0")
    shutil.copy(config_of(folder) / "config.json", tmp_path / "in")
    merge(tmp_path / "in", tmp_path / "out", None)
    assert_same(load_folder(tmp_path / "out"), load_folder(folder / "reference"))
    with pytest.raises(CheckpointError, match="and no weights"):
        merge(tmp_path / "in" / "optimizer_0", tmp_path / "never", config_of(folder))


def test_one_of_two_models_is_chosen(tmp_path):
    state = {"model.embed_tokens.weight": values(4, 4), "lm_head.weight": values(4, 4, start=9)}
    averaged = {name: tensor + 1 for name, tensor in state.items()}
    source = save_dcp({"now": state, "ema": averaged}, tmp_path / "in")
    with pytest.raises(UsageError, match="several models") as refused:
        merge(source, tmp_path / "out", None, keep_names=True)
    assert "`names.prefix`" in refused.value.hint
    for names, expected in (
        (NameOptions(prefix="ema"), averaged),
        (NameOptions(prefix="now."), state),
        (NameOptions(select=("ema.*",)), averaged),
    ):
        out = tmp_path / f"{names.prefix}{len(names.select)}"
        result = merge(source, out, None, names, keep_names=True)
        assert_same(load_folder(out), expected)
        (dropped,) = result.dropped.values()
        assert dropped.startswith("not selected: 2 tensors")


def test_a_choice_that_leaves_nothing_says_what_there_is(tmp_path):
    source = save_dcp({"net.w": values(2, 2)}, tmp_path / "in")
    for names in (NameOptions(prefix="model"), NameOptions(select=("*.bias",))):
        with pytest.raises(UsageError, match="no tensor is under") as refused:
            merge(source, tmp_path / "out", None, names, keep_names=True)
        assert "net.w" in refused.value.hint


def test_tensors_beside_the_model_are_not_dropped_by_themselves(tmp_path):
    state = {"model": {"model.embed_tokens.weight": values(4, 4)}, "extra": {"w": values(2, 2)}}
    source = save_dcp(state, tmp_path / "in")
    with pytest.raises(MappingError, match="beside the model") as refused:
        merge(source, tmp_path / "out", None, keep_names=True)
    assert refused.value.names == ("extra.w",)


def test_renamed_tensors(checkpoints, tmp_path):
    folder = checkpoints["fsdp2_w2"]
    state = load_file(folder / "raw_state_dict.safetensors")
    old = {name.replace("model.layers.", "backbone.h."): t for name, t in state.items()}
    source = save_dcp(old, tmp_path / "in")
    names = NameOptions(rename=("^backbone=model", "h.*=layers.*"))
    merge(source, tmp_path / "out", config_of(folder), names)
    assert_same(load_folder(tmp_path / "out"), load_folder(folder / "reference"))


def titan_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    back = {new: old for old, new in TITAN.items()}
    found = {}
    for name, tensor in tensors.items():
        module, _, kind = name.removeprefix("model.").rpartition(".")
        if module.startswith("layers."):
            _, layer, rest = module.split(".", 2)
            found[f"layers.{layer}.{back[rest]}.{kind}"] = tensor
        else:
            found[f"{back[name.rpartition('.')[0]]}.{kind}"] = tensor
    return found


def neighbours(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of halves, as transformers turns them, -> rows of neighbours, as Meta's code does."""
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()


@pytest.mark.parametrize(("family", "turned"), [("llama", True), ("qwen3", False)])
def test_torchtitans_names_and_rows(megatron_cases, tmp_path, family, turned):
    hf = megatron.hf(megatron_cases, family)
    expected = load_folder(hf)
    state = titan_names(expected)
    for name in list(state):
        if turned and ("wq" in name or "wk" in name):
            state[name] = neighbours(state[name], 4 if "wq" in name else 2)
    source = save_dcp({**state, "optimizer": {"state": values(3)}}, tmp_path / "in")
    merge(source, tmp_path / "out", hf)
    assert_same(load_folder(tmp_path / "out"), expected)
    assert verify_checkpoint(source, hf).equal


def test_torchtitans_names_of_other_models(megatron_cases, tmp_path):
    state = titan_names(load_folder(megatron.hf(megatron_cases, "llama")))
    source = save_dcp(state | {"layers.0.moe.w": values(2)}, tmp_path / "in")
    with pytest.raises(MappingError, match="has not") as refused:
        merge(source, tmp_path / "out", megatron.hf(megatron_cases, "llama"))
    assert refused.value.names == ("layers.0.moe.w",)
    with pytest.raises(MappingError, match="known for llama, qwen3") as refused:
        merge(source, tmp_path / "out", megatron.hf(megatron_cases, "mixtral"))
    assert "`names.rename`" in refused.value.hint


def test_other_formats_are_named_with_what_merges_them(checkpoints, megatron_cases, tmp_path):
    for source, command in (
        (checkpoints["fsdp2_w2"], "merge fsdp"),
        (megatron.native(megatron_cases, "llama", "tp1"), "merge megatron"),
    ):
        with pytest.raises(UsageError) as refused:
            merge(source, tmp_path / "out", None, keep_names=True)
        assert command in refused.value.hint
    lost = shutil.copytree(megatron.native(megatron_cases, "llama", "tp1"), tmp_path / "lost")
    (lost / "metadata.json").unlink()
    with pytest.raises(UsageError, match="named as megatron-core"):
        merge(lost, tmp_path / "out", None, keep_names=True)


def test_a_block_that_no_file_has_is_an_error(checkpoints, tmp_path):
    source = shutil.copytree(checkpoints["fsdp2_w3"] / "dcp", tmp_path / "in")
    next(source.glob("__1_*.distcp")).unlink()
    with pytest.raises(CheckpointError) as refused:
        merge(source, tmp_path / "out", config_of(checkpoints["fsdp2_w3"]))
    assert refused.value.problems[0].kind == "missing-file"
    assert not (tmp_path / "out").exists()


def test_the_config_is_asked_for(checkpoints, tmp_path):
    with pytest.raises(UsageError, match="no config"):
        merge(checkpoints["fsdp2_w3"] / "dcp", tmp_path / "out", None)
