"""Models whose tower Megatron takes from transformers: Mistral 3, and Qwen2-VL."""

import json
from pathlib import Path

import pytest
import torch
import transformers
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

UNSYNCED = WriteOptions(fsync=False)
#: Prefixes of the tower, and what is before the language model on the Hub.
MODELS = {
    "mistral3": (("vision_tower.", "multi_modal_projector."), "language_model."),
    "qwen2_vl": (("visual.",), ""),
}
every_model = pytest.mark.parametrize("family", MODELS)


@pytest.fixture
def model(family: str, tmp_path: Path) -> Path:
    require_transformers_5()
    build(family).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.read() for name, tensor in open_checkpoint(folder).items()}


def alone(model: Path, family: str, out: Path) -> Path:
    """The language model by itself, as a model of the family that it is of."""
    prefix = MODELS[family][1]
    out.mkdir()
    config = json.loads((model / "config.json").read_text())
    kind = {"mistral3": "ministral3", "qwen2_vl": "qwen2"}[family]
    text = config["text_config"] | {"model_type": kind, "tie_word_embeddings": False}
    (out / "config.json").write_text(json.dumps(text))
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in load_folder(model).items()
        if not name.startswith(MODELS[family][0])
    }
    assert "lm_head.weight" in tensors
    save_file(tensors, out / "model.safetensors")
    return out


@every_model
def test_the_tower_stays_and_the_language_model_is_that_of_its_family(model, family, tmp_path):
    convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=UNSYNCED))
    text = alone(model, family, tmp_path / "text")
    convert_to_mcore(text, tmp_path / "other", ToMcoreOptions(write=UNSYNCED))
    expected = {
        f"language_model.{name}": tensor for name, tensor in read(tmp_path / "other").items()
    }
    hub = load_folder(model)
    tower = {name: tensor for name, tensor in hub.items() if name.startswith(MODELS[family][0])}
    assert len(tower) > 10
    assert_same(read(tmp_path / "out"), expected | tower)


@every_model
def test_there_and_back_is_the_identity(model, family, tmp_path):
    there = ToMcoreOptions(layers="per-layer", layout="megatron-lm", vocab_multiple=64)
    convert_to_mcore(model, tmp_path / "there", there)
    back = MergeOptions(config=model, write=WriteOptions(fsync=False, check_load=True))
    result = merge_megatron(tmp_path / "there", tmp_path / "back", back)
    assert result.load_check.num_tensors == len(load_folder(model))
    assert_same(load_folder(tmp_path / "back"), load_folder(model))
    kind = getattr(
        transformers, json.loads((model / "config.json").read_text())["architectures"][0]
    )
    _, report = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.real
@every_model
def test_megatron_core_loads_the_language_model(model, family, tmp_path):
    checked = WriteOptions(fsync=False, check_load=True)
    result = convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=checked))
    assert result.load_check.architecture == "GPTModel (without the tower)"
    language = [n for n in open_checkpoint(tmp_path / "out") if n.startswith("language_model.")]
    assert result.load_check.num_tensors == len(language)
