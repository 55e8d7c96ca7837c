"""Qwen3-VL-MoE, Llama 4: experts of a layer are one tensor on the Hub, turned or not, or apart."""

import json
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_tool import (
    MergeOptions,
    ToMcoreOptions,
    WriteOptions,
    convert_to_mcore,
    merge_megatron,
    open_checkpoint,
    verify_checkpoint,
)
from tests.operations.to_mcore.test_qwen3_vl import BRIDGE, by_hand
from tests.support.megatron_models import CONFIGS, hub_shapes
from tests.support.merging import assert_same, load_folder
from tests.support.tiny_models import build
from tests.support.versions import require_transformers_5

Tensors = dict[str, torch.Tensor]
UNSYNCED = WriteOptions(fsync=False, check_load=False)
TO_MCORE = ToMcoreOptions(write=UNSYNCED)
EXPERTS = ".mlp.experts."


def turn(tensors: Tensors) -> Tensors:
    """From one layout of experts to the other."""
    return {
        name: tensor.transpose(1, 2).contiguous() if EXPERTS in name else tensor
        for name, tensor in tensors.items()
    }


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers 5 saves a model that it has not loaded: [E, 2I, H], [E, H, I]."""
    require_transformers_5()
    hf = tmp_path_factory.mktemp("memory") / "hf"
    build("qwen3_vl_moe").save_pretrained(hf)
    return hf


@pytest.fixture(scope="module")
def on_hub(in_memory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is released: [E, H, 2I], [E, I, H]."""
    hf = tmp_path_factory.mktemp("hub") / "hf"
    hf.mkdir()
    save_file(turn(load_folder(in_memory)), hf / "model.safetensors", {"format": "pt"})
    (hf / "config.json").write_bytes((in_memory / "config.json").read_bytes())
    return hf


def read(folder: Path) -> Tensors:
    return {name: tensor.read() for name, tensor in open_checkpoint(folder).items()}


def by_rows(released: Path) -> Tensors:
    """By Megatron-Bridge's rows; of all experts of a layer there is one tensor, [E, out, in]."""
    dense = ("language_model.decoder.layers.*.mlp.",)
    layer, hub = "language_model.decoder.layers.*.", "model.language_model.layers.*."
    rows = [one for one in BRIDGE.replace("\\\n", "").splitlines() if not one.startswith(dense)]
    rows += [
        f"{layer}pre_mlp_layernorm.weight | {hub}post_attention_layernorm.weight",
        f"{layer}mlp.router.weight | {hub}mlp.gate.weight",
        f"{layer}mlp.experts.experts.linear_fc1.weight | {hub}mlp.experts.gate_up_proj",
        f"{layer}mlp.experts.experts.linear_fc2.weight | {hub}mlp.experts.down_proj",
    ]
    found = by_hand(released, "\n".join(rows))
    return turn(found)


@pytest.mark.parametrize("form", ["in_memory", "on_hub"])
def test_either_layout_gives_what_megatron_bridge_has(form, on_hub, request, tmp_path):
    model = request.getfixturevalue(form)
    convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(layers="per-layer", write=UNSYNCED))
    found, expected = read(tmp_path / "out"), by_rows(on_hub)
    assert {tuple(t.shape) for n, t in found.items() if "experts.linear_fc1" in n} == {(3, 48, 32)}
    assert_same(found, expected)
    assert verify_checkpoint(tmp_path / "out", model).equal


@pytest.mark.parametrize("layers", ["", "per-layer"])
def test_what_comes_back_is_as_it_is_released(in_memory, on_hub, layers, tmp_path):
    there = ToMcoreOptions(layers=layers, vocab_multiple=64, write=UNSYNCED)
    convert_to_mcore(in_memory, tmp_path / "there", there)
    checked = WriteOptions(fsync=False, check_load=True)
    back = MergeOptions(config=in_memory, write=checked)
    merge_megatron(tmp_path / "there", tmp_path / "back", back)
    assert_same(load_folder(tmp_path / "back"), load_folder(on_hub))
    assert verify_checkpoint(tmp_path / "there", in_memory).equal


@pytest.fixture(scope="module")
def llama4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model by experts that are `packed`, and `apart`, [out, in] as all linear layers."""
    folder = tmp_path_factory.mktemp("llama4")
    packed = {
        name: torch.arange(prod(shape)).reshape(shape) + 1000.0 * number
        for number, (name, shape) in enumerate(hub_shapes("llama4_text").items())
    }
    apart: Tensors = {}
    for name, tensor in packed.items():
        stem, _, part = name.rpartition(".")
        if not stem.endswith(".experts"):
            apart[name] = tensor
            continue
        parts = ("gate_proj", "up_proj") if part == "gate_up_proj" else ("down_proj",)
        for expert, whole in enumerate(tensor):
            for each, rows in zip(parts, whole.T.chunk(len(parts)), strict=True):
                apart[f"{stem}.{expert}.{each}.weight"] = rows.contiguous()
    assert len(apart) > len(packed)
    for form, tensors in (("packed", packed), ("apart", apart)):
        write_llama4(folder / form, tensors)
        convert_to_mcore(folder / form, folder / f"{form}-mcore", TO_MCORE)
    return folder


def write_llama4(folder: Path, tensors: Tensors, **said: object) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "llama4_text"} | CONFIGS["llama4_text"] | said
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_experts_of_llama_4_are_in_one_tensor_or_each_by_itself(llama4):
    """Those of Maverick in fp8 are the latter."""
    assert_same(read(llama4 / "apart-mcore"), read(llama4 / "packed-mcore"))


@pytest.mark.parametrize("form", ["packed", "apart"])
def test_experts_of_llama_4_come_back_as_the_weights_beside_the_config_have_them(
    llama4, form, tmp_path
):
    unchecked = WriteOptions(fsync=False, check_load=False)
    back = MergeOptions(config=llama4 / form, write=unchecked)
    merge_megatron(llama4 / "packed-mcore", tmp_path / "back", back)
    assert_same(load_folder(tmp_path / "back"), load_folder(llama4 / form))


@pytest.mark.parametrize("form", ["packed", "packed-mcore"])
def test_both_forms_of_llama_4_are_compared_by_each_expert(llama4, form, tmp_path):
    assert verify_checkpoint(llama4 / form, llama4 / "apart").equal
    assert verify_checkpoint(llama4 / "apart", llama4 / form).equal
    tensors = load_folder(llama4 / "apart")
    name = next(name for name in tensors if name.endswith("experts.1.up_proj.weight"))
    tensors[name][2, 3] += 1
    result = verify_checkpoint(llama4 / form, write_llama4(tmp_path / "other", tensors))
    assert [(row.name, row.first_index) for row in result.mismatched] == [(name, (2, 3))]
    assert not result.missing
    assert not result.unexpected


def test_experts_of_llama_4_in_fp8_are_compared_by_their_values(llama4, tmp_path):
    tensors: Tensors = {}
    for name, tensor in load_folder(llama4 / "apart").items():
        tensors[name] = tensor
        if ".experts." in name:
            scales = torch.arange(len(tensor))[:, None] + 1.5
            stored = (tensor / tensor.max() * 400).to(torch.float8_e4m3fn)
            tensors |= {name: stored, f"{name}_scale": scales}
    said = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    fp8 = write_llama4(tmp_path / "fp8", tensors, quantization_config=said)
    convert_to_mcore(fp8, tmp_path / "mcore", ToMcoreOptions(dtype="float32", write=UNSYNCED))
    assert verify_checkpoint(tmp_path / "mcore", fp8).equal
    assert not verify_checkpoint(llama4 / "packed-mcore", fp8).equal


@pytest.mark.real
def test_modules_of_megatron_core_load_it(on_hub, tmp_path):
    checked = WriteOptions(fsync=False, check_load=True)
    result = convert_to_mcore(on_hub, tmp_path / "out", ToMcoreOptions(write=checked))
    assert result.load_check.architecture == "GPTModel and vision tower (its blocks)"
