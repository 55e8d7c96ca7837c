"""Rank files of Qwen2.5-VL: the tensors of a whole model, worked out by hand, cut by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from ckpt_tool import ToMcoreOptions, VerifyOptions, convert_to_mcore, verify_checkpoint
from ckpt_tool.readers import open_checkpoint
from tests.operations.to_mcore import test_towers as towers
from tests.operations.to_mcore import test_vl as vl
from tests.support.merging import load_folder

model = vl.model  # the fixture

LANGUAGE, VISION = "language_model.decoder.layers.", "vision_model.decoder.layers."
TP = 2


def part(name: str, whole: Tensor, rank: int) -> Tensor:
    """What a tensor-parallel rank has; of transformers' own modules all."""
    if "visual." in name or "audio" in name:
        return whole.clone()
    if "embedding" in name or "output_layer" in name:
        return pad(whole, (0, 0, 0, -len(whole) % TP)).chunk(TP)[rank].clone()
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return whole.chunk(TP, 1)[rank].clone()
    if name.endswith(("linear_fc1.weight", "linear_fc1.bias")) and ".layers." in name:
        gate, up = whole.chunk(2)
        return torch.cat([gate.chunk(TP)[rank], up.chunk(TP)[rank]])
    cut = ("linear_qkv.weight", "linear_qkv.bias", "linear_fc1.weight", "encoder.linear_fc1.bias")
    return whole.chunk(TP)[rank].clone() if name.endswith(cut) else whole.clone()


def stage_of(name: str) -> tuple[int, str]:
    """The stage, of two, and the name in it: the second one ends the language model."""
    if name.startswith(LANGUAGE):
        layer, rest = name.removeprefix(LANGUAGE).split(".", 1)
        half = vl.LAYERS // 2
        return int(layer) // half, f"{LANGUAGE}{int(layer) % half}.{rest}"
    last = ("language_model.decoder.final_layernorm", "language_model.output_layer")
    return int(name.startswith(last)), name


def write_ranks(folder: Path, whole: dict[str, Tensor], pp: int) -> None:
    """A file for each rank, with its part of each tensor."""
    for rank in range(TP):
        stages: list[dict[str, Tensor]] = [{} for _ in range(pp)]
        for name, tensor in whole.items():
            stage, local = stage_of(name) if pp > 1 else (0, name)
            stages[stage][local] = part(name, tensor, rank)
        for stage, state in enumerate(stages):
            path = folder / "model" / f"mp_rank_{rank:02d}_{stage:03d}" / "model.pt"
            path.parent.mkdir(parents=True)
            torch.save([state], path)


@pytest.mark.parametrize("pp", [1, 2])
def test_both_towers_bit_for_bit(model: Path, tmp_path: Path, pp: int) -> None:
    write_ranks(tmp_path / "actor", vl.by_hand(load_folder(model), "per-layer"), pp)
    result = verify_checkpoint(tmp_path / "actor", model)
    assert result.equal
    assert result.num_compared == len(open_checkpoint(model))


@pytest.mark.parametrize("prefix", ["visual.", "model.visual.", "visual.visual."])
def test_the_tower_that_others_take_from_transformers(
    model: Path, tmp_path: Path, prefix: str
) -> None:
    """Of Megatron-Bridge, slime and ms-swift: the same on both sides, and whole on every rank."""
    hub = load_folder(model)
    whole = vl.by_hand(hub, "per-layer")
    whole = {name: tensor for name, tensor in whole.items() if name.startswith("language_model.")}
    tower = {name: tensor for name, tensor in hub.items() if name.startswith("visual.")}
    assert any("down_proj" in name for name in tower)
    other = {prefix + name.removeprefix("visual."): tensor for name, tensor in tower.items()}
    write_ranks(tmp_path / "actor", whole | other, 2)
    result = verify_checkpoint(tmp_path / "actor", model)
    assert result.equal
    assert result.num_compared == len(hub)


def test_a_thinker_whose_towers_every_rank_has_whole(tmp_path: Path) -> None:
    text = towers.make_text("qwen2_5_omni", tmp_path / "text")
    omni = towers.make_whole("qwen2_5_omni", text, tmp_path / "hf")
    options = ToMcoreOptions(layers="per-layer", write=towers.UNSYNCED)
    convert_to_mcore(omni, tmp_path / "mcore", options)
    write_ranks(tmp_path / "actor", towers.read(tmp_path / "mcore"), 1)
    assert verify_checkpoint(tmp_path / "actor", omni, VerifyOptions(fill_from=omni)).equal
