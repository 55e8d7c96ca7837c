"""Gemma 3 that sees: transformers' own tower, and a projector that is turned on one side."""

import json
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
)
from tests.support.merging import assert_same, load_folder
from tests.support.tiny_models import build
from tests.support.versions import require_transformers_5

UNSYNCED = WriteOptions(fsync=False, check_load=False)
TOWERS = ("vision_tower.", "multi_modal_projector.")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """SigLIP's tensors are called as they are in every Gemma 3 that was released."""
    require_transformers_5()
    folder = tmp_path / "hf"
    build("gemma3").save_pretrained(folder)
    old, new = "vision_tower.", "vision_tower.vision_model."
    tensors = {name.replace(old, new): tensor for name, tensor in load_folder(folder).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.read() for name, tensor in open_checkpoint(folder).items()}


def alone(model: Path, out: Path) -> Path:
    """The language model by itself."""
    out.mkdir()
    config = json.loads((model / "config.json").read_text())
    text = config["text_config"] | {"tie_word_embeddings": False}
    (out / "config.json").write_text(json.dumps(text))
    tensors = {
        name.removeprefix("language_model."): tensor
        for name, tensor in load_folder(model).items()
        if not name.startswith(TOWERS)
    }
    save_file(tensors, out / "model.safetensors")
    return out


def test_the_projector_is_turned_and_all_else_is_that_of_its_family(model, tmp_path):
    convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=UNSYNCED))
    text = alone(model, tmp_path / "text")
    convert_to_mcore(text, tmp_path / "other", ToMcoreOptions(write=UNSYNCED))
    expected = {f"language_model.{name}": t for name, t in read(tmp_path / "other").items()}
    hub = {name: t for name, t in load_folder(model).items() if name.startswith(TOWERS)}
    assert len(hub) > 10
    projector = "multi_modal_projector."
    turned = hub.pop(f"{projector}mm_input_projection_weight").t()
    expected[f"{projector}proj.weight"] = turned
    norm = hub.pop(f"{projector}mm_soft_emb_norm.weight")
    expected[f"{projector}mm_soft_embed_norm.weight"] = norm
    assert_same(read(tmp_path / "out"), expected | hub)


def test_there_and_back_is_the_identity(model, tmp_path):
    there = ToMcoreOptions(layers="per-layer", layout="megatron-lm", vocab_multiple=64)
    convert_to_mcore(model, tmp_path / "there", there)
    back = MergeOptions(config=model, write=WriteOptions(fsync=False, check_load=True))
    result = merge_megatron(tmp_path / "there", tmp_path / "back", back)
    assert result.load_check.num_tensors == len(load_folder(model))
    assert_same(load_folder(tmp_path / "back"), load_folder(model))


@pytest.mark.real
def test_megatron_core_loads_the_language_model(model, tmp_path):
    checked = WriteOptions(fsync=False, check_load=True)
    result = convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=checked))
    assert result.load_check.architecture == "GPTModel (without the tower)"
    language = [n for n in open_checkpoint(tmp_path / "out") if n.startswith("language_model.")]
    assert result.load_check.num_tensors == len(language)
