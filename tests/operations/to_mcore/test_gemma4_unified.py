"""Gemma 4 12B, which has no towers: its language model is Gemma 4's, and what embeds is moved."""

from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp

from ckpt_tool import MergeOptions, WriteOptions, merge_megatron
from ckpt_tool.common.errors import MappingError
from tests.mapping.megatron.test_gemma4_names import as_swift
from tests.operations.to_mcore.test_gemma4 import HEADS, list_wanted
from tests.operations.to_mcore.test_inputs import Tensors, assert_same, convert, loaded, rewritten
from tests.support.gemma4_models import build_unified
from tests.support.merging import load_folder
from tests.support.versions import needs_transformers_5

pytestmark = [
    needs_transformers_5,
    pytest.mark.filterwarnings("ignore:torch.distributed is"),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    build_unified().save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def as_modules(hub: Tensors) -> Tensors:
    """What embeds images and sounds, as transformers has it in memory and a trainer takes it."""
    found = {}
    for name, tensor in hub.items():
        _, part, rest = name.split(".", 2)
        if part == "vision_embedder":
            found[f"embed_vision.{rest}"] = tensor
        elif part == "embed_vision":
            found[f"embed_vision.multimodal_embedder.{rest}"] = tensor
        elif part == "embed_audio":
            found[f"embed_audio.{rest}"] = tensor
    return found


def merge(folder: Path, model: Path, out: Path) -> Tensors:
    options = MergeOptions(config=model, write=WriteOptions(fsync=False, check_load=True))
    merge_megatron(folder, out, options)
    return load_folder(out)


def test_it_is_a_gemma_4_with_other_eyes(model, tmp_path) -> None:
    hub = load_folder(model)
    convert(model, tmp_path / "mcore")
    language = list_wanted(hub, HEADS, stacked=True)
    wanted = {f"language_model.{name}": tensor for name, tensor in language.items()}
    assert len(as_modules(hub)) == 11
    assert_same(loaded(tmp_path / "mcore"), wanted | as_modules(hub))
    assert_same(merge(tmp_path / "mcore", model, tmp_path / "back"), hub)


def test_its_language_model_alone(tmp_path) -> None:
    build_unified(towers=False).save_pretrained(tmp_path / "hf")
    hub = load_folder(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "mcore")
    assert_same(loaded(tmp_path / "mcore"), list_wanted(hub, HEADS, stacked=True))
    assert_same(merge(tmp_path / "mcore", tmp_path / "hf", tmp_path / "back"), hub)


def test_as_ms_swift_has_it(model, tmp_path) -> None:
    hub = load_folder(model)
    moved = as_modules(hub)
    inside = {name: tensor for name, tensor in hub.items() if "language_model." in name}
    swift = as_swift(inside, {number: 1 if number % 3 == 2 else 2 for number in range(6)})
    swift |= {f"visual.{name}": tensor for name, tensor in moved.items()}
    dcp.save(swift, checkpoint_id=tmp_path / "swift", no_dist=True)
    assert_same(merge(tmp_path / "swift", model, tmp_path / "back"), hub)


def test_without_ears_it_hears_nothing(model, tmp_path) -> None:
    def deafen(tensors: Tensors) -> None:
        del tensors["model.embed_audio.embedding_projection.weight"]

    with pytest.raises(MappingError, match="embed_audio"):
        convert(rewritten(model, tmp_path / "deaf", deafen), tmp_path / "mcore")
    deaf = rewritten(model, tmp_path / "whole", deafen, {"audio_config": None})
    convert(deaf, tmp_path / "mcore")
    assert_same(merge(tmp_path / "mcore", deaf, tmp_path / "back"), load_folder(deaf))
