"""Rank files of Nemotron models that see and hear: Mamba and a tower, cut by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForCausalLM

from ckpt_tool import ToMcoreOptions, VerifyOptions, convert_to_mcore, verify_checkpoint
from ckpt_tool.readers import open_checkpoint
from tests.operations.to_mcore import test_nemotron_vl as nemotron
from tests.real.fill import fill_distinct
from tests.real.megatron_nemotron import CONFIG
from tests.support.versions import needs_transformers_5

pytestmark = needs_transformers_5
model = nemotron.model  # the fixture

TP = 2
_TOWER = "llava_model.vision_model.decoder.layers."
_ROWS = ("linear_qkv.weight", "linear_qkv.bias", "linear_fc1.weight", "linear_fc1.bias")
_ROWS += ("mixer.A_log", "mixer.D", "mixer.dt_bias", "mixer.norm.weight", "embedder.weight")
_COLUMNS = ("out_proj.weight", "linear_proj.weight", "linear_fc2.weight")
_VOCABULARY = ("word_embeddings.weight", "output_layer.weight")
#: What a mixer's tensor is made of, each cut by itself.
_PARTS = {
    "mixer.in_proj.weight": ("z", "x", "B", "C", "dt"),
    "mixer.conv1d.weight": ("x", "B", "C"),
    "mixer.conv1d.bias": ("x", "B", "C"),
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Without experts: files of ranks with those are held elsewhere."""
    said = {key: value for key, value in CONFIG.items() if not key.startswith("mtp_")}
    said["layers_block_type"] = ["linear_attention", "mlp", "full_attention"]
    config = AutoConfig.for_model("nemotron_h", **said | {"num_nextn_predict_layers": 0})
    language = AutoModelForCausalLM.from_config(config)
    fill_distinct(language)
    language.float().save_pretrained(tmp_path / "text")
    return tmp_path / "text"


def part(name: str, whole: Tensor, rank: int) -> Tensor:
    """What a rank has of a tensor that is one in its file too."""
    if name.startswith("llava_model.sound_model."):  # transformers' own
        return whole.clone()
    if name.endswith(_VOCABULARY):
        return pad(whole, (0, 0, 0, -len(whole) % TP)).chunk(TP)[rank].clone()
    if name.endswith(_COLUMNS):
        return whole.chunk(TP, 1)[rank].clone()
    return whole.chunk(TP)[rank].clone() if name.endswith(_ROWS) else whole.clone()


def rank_state(found: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    rest = dict(found)
    state = {}
    for name in [name for name in found if name.startswith(_TOWER)]:
        for layer, tensor in enumerate(rest.pop(name)):
            rest[f"{_TOWER}{layer}.{name.removeprefix(_TOWER)}"] = tensor
    for end, parts in _PARTS.items():
        for first in [name for name in rest if name.endswith(f"{end}.{parts[0]}")]:
            stem = first.removesuffix(f".{parts[0]}")
            pieces = [rest.pop(f"{stem}.{each}").chunk(TP)[rank] for each in parts]
            state[stem] = torch.cat(pieces)
    return state | {name: part(name, tensor, rank) for name, tensor in rest.items()}


@nemotron.every_family
def test_mixers_and_towers_bit_for_bit(model: Path, family: str, tmp_path: Path) -> None:
    convert_to_mcore(model, tmp_path / "mcore", ToMcoreOptions(write=nemotron.UNSYNCED))
    found = nemotron.read(tmp_path / "mcore")
    for rank in range(TP):
        path = tmp_path / "actor" / "model" / f"mp_rank_{rank:02d}" / "model.pt"
        path.parent.mkdir(parents=True)
        torch.save([rank_state(found, rank)], path)
    result = verify_checkpoint(tmp_path / "actor", model, VerifyOptions(fill_from=model))
    assert result.equal
    assert result.num_compared == len(open_checkpoint(model))
