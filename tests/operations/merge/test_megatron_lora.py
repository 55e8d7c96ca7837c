"""Checkpoints with adapters of Megatron-Bridge; one that it wrote itself, with TP of 2."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from ckpt_tool.common.errors import MappingError, UsageError
from ckpt_tool.mapping.lora.options import LoraOptions
from ckpt_tool.operations.merge import merge_megatron
from ckpt_tool.operations.options import MergeOptions
from ckpt_tool.operations.verify import verify_checkpoint
from ckpt_tool.plans.options import WriteOptions
from tests.real.fsdp_reference import logits_of
from tests.support.merging import assert_same, load_folder
from tests.support.resaving import resaved

# Written by megatron.bridge.peft 0.3.1 on two ranks: all four linear layers of two layers, of rank
# 8, with random factors; alpha is 16. The logits are those of the ranks.
WRITTEN = Path(__file__).parents[2] / "fixtures" / "bridge0.3_lora_tp2"
QKV = "decoder.layers.self_attention.linear_qkv"


def options(alpha: float | None = 16.0, mode: str | None = None) -> MergeOptions:
    write = WriteOptions(verify=True, check_load=True)
    lora = LoraOptions(mode, alpha)
    return MergeOptions(lora=lora, write=write, config=WRITTEN / "huggingface")


def test_fused_computes_what_the_ranks_did(tmp_path):
    result = merge_megatron(WRITTEN, tmp_path / "out", options())
    assert result.verified
    assert result.lora is not None
    assert (result.lora.num_modules, result.lora.rank, result.lora.alpha) == (8, 8, 16.0)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    )
    judge = load_file(WRITTEN / "logits.safetensors")
    found = logits_of(model.eval(), judge["input_ids"])
    assert torch.allclose(found, judge["logits"], rtol=1e-5, atol=1e-6)


def test_without_the_adapters_it_computes_something_else(tmp_path):
    def without(tensors):
        return {name: t for name, t in tensors.items() if ".adapter." not in name}

    source = resaved(WRITTEN, tmp_path / "in", without)
    merge_megatron(source, tmp_path / "out", options(alpha=None))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    )
    judge = load_file(WRITTEN / "logits.safetensors")
    found = logits_of(model.eval(), judge["input_ids"])
    assert not torch.allclose(found, judge["logits"], rtol=1e-2, atol=1e-2)


def test_split_off_for_peft(tmp_path):
    out = tmp_path / "out"
    result = merge_megatron(WRITTEN, out, options(mode="split"))
    assert result.verified
    assert result.lora is not None
    assert (result.lora.mode, result.lora.num_modules) == ("split", 14)
    model = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    adapted = peft.PeftModel.from_pretrained(model, out / "lora_adapter")
    judge = load_file(WRITTEN / "logits.safetensors")
    found = logits_of(adapted.eval(), judge["input_ids"])
    assert torch.allclose(found, judge["logits"], rtol=1e-5, atol=1e-6)
    config = json.loads((out / "lora_adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], len(config["target_modules"])) == (8, 16, 7)


def test_both_are_what_each_is(tmp_path):
    for mode in ("fuse", "split", "both"):
        merge_megatron(WRITTEN, tmp_path / mode, options(mode=mode))
    assert_same(load_folder(tmp_path / "both"), load_folder(tmp_path / "fuse"))
    adapters = [load_folder(tmp_path / mode / "lora_adapter") for mode in ("both", "split")]
    assert_same(*adapters)


def test_an_update_by_hand(tmp_path):
    """Row 3 of the query-key-value weight of layer 1 is a row of the first query head."""
    merge_megatron(WRITTEN, tmp_path / "out", options())
    state = {}

    def looked_at(tensors):
        state.update(tensors)
        return tensors

    resaved(WRITTEN, tmp_path / "in", looked_at)
    factors = [state[f"{QKV}.adapter.linear_{part}.weight"][1].double() for part in ("out", "in")]
    expected = state[f"{QKV}.weight"][1][3].double() + 16 / 8 * (factors[0][3] @ factors[1])
    found = load_folder(tmp_path / "out")["model.layers.1.self_attn.q_proj.weight"][3]
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-7)


def test_layers_of_their_own_are_fused_alike(tmp_path):
    def apart(tensors):
        found = {}
        for name, tensor in tensors.items():
            layers = tensor.unbind(0) if name.startswith("decoder.layers.") else ()
            for number, part in enumerate(layers):
                found[name.replace("layers.", f"layers.{number}.", 1)] = part.clone()
            if not layers:
                found[name] = tensor
        return found

    source = resaved(WRITTEN, tmp_path / "in", apart)
    merge_megatron(source, tmp_path / "out", options())
    merge_megatron(WRITTEN, tmp_path / "expected", options())
    assert_same(load_folder(tmp_path / "out"), load_folder(tmp_path / "expected"))


def test_verify_compares_what_is_fused(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "dist_ckpt").symlink_to(WRITTEN / "dist_ckpt")
    shutil.copytree(WRITTEN / "huggingface", source / "huggingface")
    merge_megatron(source, tmp_path / "out", options())
    (source / "huggingface" / "adapter").mkdir(exist_ok=True)
    settings = source / "huggingface" / "adapter" / "adapter_config.json"
    settings.write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 16}')
    assert verify_checkpoint(source, tmp_path / "out").equal
    settings.write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 32}')
    assert len(verify_checkpoint(source, tmp_path / "out").mismatched) == 14


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (f"{QKV}.adapter.weight_magnitude", (2, 64), "not of plain LoRA"),
        (f"{QKV}.adapter.adapter_q.linear_in.weight", (2, 8, 32), "not of plain LoRA"),
        ("decoder.layers.x.adapter.linear_in.weight", (2, 8, 32), "no adapter.linear_out.weight"),
        (f"{QKV}.adapter.linear_out.weight", (64, 8), "for a weight of shape [2, 64, 32]"),
        (f"{QKV}.adapter.linear_out.weight", (2, 64, 4), "factors of shapes"),
    ],
)
def test_adapters_that_cannot_be_fused_are_named(tmp_path, name, shape, message):
    source = resaved(WRITTEN, tmp_path / "in", lambda found: found | {name: torch.ones(shape)})
    with pytest.raises(MappingError) as error:
        merge_megatron(source, tmp_path / "out", options())
    assert any(message in fault for fault in error.value.names), error.value.names
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (options(alpha=None), "alpha is unknown"),
    ],
)
def test_requests_that_cannot_be_carried_out(tmp_path, chosen, message):
    with pytest.raises(UsageError, match=message):
        merge_megatron(WRITTEN, tmp_path / "out", chosen)


def test_options_for_adapters_where_there_are_none(tmp_path):
    source = Path(__file__).parents[2] / "fixtures" / "mcore0.16_dense" / "checkpoint"
    with pytest.raises(UsageError, match="no LoRA adapters"):
        merge_megatron(source, tmp_path / "out", options(mode="fuse"))
