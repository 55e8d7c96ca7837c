"""Verifying what needs to be told how it is named: by the options that a merge takes."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckpt_tool import (
    LoraOptions,
    MergeOptions,
    NameOptions,
    UsageError,
    VerifyOptions,
    merge_dcp,
    merge_fsdp,
    merge_megatron,
    verify_checkpoint,
)
from tests.operations.merge.test_megatron_lora import WRITTEN
from tests.support import megatron
from tests.support.merging import load_folder, values
from tests.support.resaving import save_dcp
from tests.support.verifying import save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

ALPHA = LoraOptions(alpha=16.0)
RENAMES = NameOptions(rename=("^backbone=model", "h.*=layers.*"))


@pytest.mark.slow
def test_adapters_of_megatron_are_fused_with_the_alpha_that_is_said(tmp_path):
    merge_megatron(WRITTEN, tmp_path / "out", MergeOptions(lora=ALPHA))
    with pytest.raises(UsageError, match="alpha is unknown"):
        verify_checkpoint(WRITTEN, tmp_path / "out")
    found = verify_checkpoint(WRITTEN, tmp_path / "out", VerifyOptions(lora=ALPHA))
    assert found.equal
    assert any("fused (rank 8, alpha 16" in warning for warning in found.left.warnings)
    assert verify_checkpoint(tmp_path / "out", WRITTEN, VerifyOptions(lora=ALPHA)).equal
    twice = verify_checkpoint(WRITTEN, tmp_path / "out", VerifyOptions(lora=LoraOptions(alpha=32)))
    assert len(twice.mismatched) == 14  # query, key, value, output, gate, up, down of two layers


def test_adapters_alone_are_fused_into_the_base_that_is_named(checkpoints, tmp_path):
    adapters, whole = checkpoints["lora_alone_w2"], checkpoints["lora_w2"]
    lora = LoraOptions(base=whole / "base")
    merge_fsdp(adapters, tmp_path / "out", MergeOptions(lora=lora))
    assert verify_checkpoint(adapters, tmp_path / "out", VerifyOptions(lora=lora)).equal
    assert verify_checkpoint(whole, tmp_path / "out").equal


@pytest.fixture
def renamed(checkpoints, tmp_path) -> tuple[Path, Path]:
    """A checkpoint with names of its own, and what a merge made of it."""
    folder = checkpoints["fsdp2_w2"]
    state = load_file(folder / "raw_state_dict.safetensors")
    old = {name.replace("model.layers.", "backbone.h."): t for name, t in state.items()}
    source = save_dcp(old, tmp_path / "renamed")
    config = folder / "actor" / "huggingface"
    merge_dcp(source, tmp_path / "model", MergeOptions(config=config, names=RENAMES))
    return source, tmp_path / "model"


def test_what_was_renamed_is_equal_to_its_source(renamed):
    source, model = renamed
    assert not verify_checkpoint(source, model).equal
    assert verify_checkpoint(source, model, VerifyOptions(names=RENAMES)).equal
    assert verify_checkpoint(model, source, VerifyOptions(names=RENAMES)).equal


def test_one_of_two_models_in_a_checkpoint(checkpoints, tmp_path):
    folder = checkpoints["fsdp2_w2"]
    model = load_file(folder / "raw_state_dict.safetensors")
    other = {name: tensor + 1 for name, tensor in model.items()}
    source = save_dcp({"policy": model, "reference": other}, tmp_path / "two")
    with pytest.raises(UsageError, match="several models"):
        verify_checkpoint(source, folder / "reference")
    for names, equal in (
        (NameOptions(prefix="policy"), True),
        (NameOptions(select=("policy.*",)), True),
        (NameOptions(prefix="reference"), False),
    ):
        options = VerifyOptions(names=names)
        assert verify_checkpoint(source, folder / "reference", options).equal is equal


def test_a_config_for_sides_that_have_none(megatron_cases, tmp_path):
    bare = shutil.copytree(megatron.native(megatron_cases, "llama", "tp1"), tmp_path / "bare")
    hf = megatron.hf(megatron_cases, "llama")
    lone = save(load_folder(hf), tmp_path / "lone" / "model.safetensors").parent
    assert not verify_checkpoint(bare, lone).equal
    assert verify_checkpoint(bare, lone, VerifyOptions(config=hf)).equal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (VerifyOptions(names=RENAMES), "both are Hugging Face models"),
        (VerifyOptions(lora=ALPHA), "no LoRA adapters"),
        (VerifyOptions(lora=LoraOptions("split")), "compared with adapters fused"),
    ],
)
def test_what_no_side_takes_is_refused(checkpoints, options, message):
    model = checkpoints["fsdp2_w2"] / "reference"
    with pytest.raises(UsageError, match=message):
        verify_checkpoint(model, model, options)


def test_megatrons_names_are_not_renamed(megatron_cases):
    source = megatron.native(megatron_cases, "llama", "tp1")
    hf = megatron.hf(megatron_cases, "llama")
    with pytest.raises(UsageError, match="nothing to select or to rename"):
        verify_checkpoint(source, hf, VerifyOptions(names=RENAMES))


def test_what_is_wrong_with_names_of_a_model_is_said(checkpoints, tmp_path):
    """Fused experts of no known layout are compared as they are, and the reason is a warning."""
    reference = checkpoints["fsdp2_w2"] / "reference"
    raw = dict(load_folder(reference))
    raw["model.layers.0.mlp.experts.gate_up_proj"] = values(2, 4, 4)
    raw["model.layers.0.mlp.experts.down_proj"] = values(2, 3, 3)
    odd = save(raw, tmp_path / "odd" / "model.safetensors").parent
    (odd / "config.json").write_text('{"model_type": "qwen3_moe"}')
    found = verify_checkpoint(odd, odd)
    assert found.equal
    assert any("fit no layout of experts" in said for said in found.left.warnings)


def test_options_of_names_are_for_rank_files_too(checkpoints, tmp_path):
    source, out = checkpoints["fsdp2_w2"], tmp_path / "out"
    names = NameOptions(rename=("norm=ln",), select=("model.norm.*",))
    merge_fsdp(source, out, MergeOptions(keep_names=True, names=names))
    assert set(load_folder(out)) == {"model.ln.weight"}
    assert torch.equal(
        load_folder(out)["model.ln.weight"],
        load_file(source / "raw_state_dict.safetensors")["model.norm.weight"],
    )
