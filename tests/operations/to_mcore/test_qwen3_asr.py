"""Qwen3-ASR under the names of transformers' own class and of the repository that has its code."""

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
    verify_checkpoint,
)
from ckpt_tool.mapping.config import load_config
from ckpt_tool.mapping.megatron.convert import restore_model
from tests.real.fill import fill_distinct
from tests.support.merging import assert_same, load_folder
from tests.support.saved import assert_equal, write_tensors

UNSYNCED = WriteOptions(fsync=False, check_load=False)
_AUDIO = {
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "d_model": 12,
    "output_dim": 16,
    "downsample_hidden_size": 4,
    "num_mel_bins": 16,
}
_TEXT = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 32,
}
#: Of the released repository, in place of transformers' names.
RELEASED = {
    "model.language_model.": "thinker.model.",
    "model.audio_tower.": "thinker.audio_tower.",
    "model.multi_modal_projector.linear_1.": "thinker.audio_tower.proj1.",
    "model.multi_modal_projector.linear_2.": "thinker.audio_tower.proj2.",
    "lm_head.": "thinker.lm_head.",
}
pytestmark = pytest.mark.skipif(
    not hasattr(transformers, "Qwen3ASRForConditionalGeneration"), reason="transformers has no such"
)


def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in tensors.items():
        (old,) = (old for old in RELEASED if name.startswith(old))
        found[RELEASED[old] + name.removeprefix(old)] = tensor
    return found


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request, tmp_path_factory) -> Path:
    tied = {"tie_word_embeddings": request.param}
    config = transformers.Qwen3ASRConfig(audio_config=_AUDIO, text_config=_TEXT | tied, **tied)
    built = transformers.Qwen3ASRForConditionalGeneration(config)
    fill_distinct(built)
    folder = tmp_path_factory.mktemp("qwen3_asr") / "hf"
    built.save_pretrained(folder)
    return folder


def test_it_is_the_released_one_in_megatron(model, tmp_path):
    released = tmp_path / "released"
    released.mkdir()
    save_file(rename(load_folder(model)), released / "model.safetensors", {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    parts = {key: config.pop(key) for key in ("audio_config", "text_config")}
    (released / "config.json").write_text(json.dumps(config | {"thinker_config": parts}))
    for name, folder in {"ours": model, "theirs": released}.items():
        convert_to_mcore(folder, tmp_path / name, ToMcoreOptions(write=UNSYNCED))
    ours, theirs = (
        {name: tensor.read() for name, tensor in open_checkpoint(tmp_path / part).items()}
        for part in ("ours", "theirs")
    )
    assert_same(ours, theirs)
    assert "thinker.audio_model.proj1.weight" in ours


def test_there_and_back_is_the_identity_and_loads(model, tmp_path):
    convert_to_mcore(model, tmp_path / "there", ToMcoreOptions(write=UNSYNCED))
    checked = WriteOptions(fsync=False, check_load=True)
    merge_megatron(tmp_path / "there", tmp_path / "back", MergeOptions(config=model, write=checked))
    assert_same(load_folder(tmp_path / "back"), load_folder(model))
    assert verify_checkpoint(tmp_path / "there", model).equal


def test_a_tower_as_ms_swift_has_it(model, tmp_path):
    convert_to_mcore(model, tmp_path / "out", ToMcoreOptions(write=UNSYNCED))
    found = {
        name.removeprefix("thinker.").replace("audio_model.", "visual.audio_tower."): t.read()
        for name, t in open_checkpoint(tmp_path / "out").items()
    }
    assert "visual.audio_tower.proj2.bias" in found
    stored = write_tensors(tmp_path / "m.safetensors", found)
    assert_equal(restore_model(stored, load_config(model)).tensors, load_folder(model))
