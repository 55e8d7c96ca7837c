"""Rank files of Qwen2.5-VL: the tensors of a whole model, worked out by hand, cut by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from ckpt_tool import verify_checkpoint
from ckpt_tool.readers import open_checkpoint
from tests.operations.to_mcore import test_vl as vl
from tests.support.merging import load_folder

model = vl.model  # the fixture

LANGUAGE, VISION = "language_model.decoder.layers.", "vision_model.decoder.layers."
TP = 2


def part(name: str, whole: Tensor, rank: int) -> Tensor:
    """What a tensor-parallel rank has."""
    if "embedding" in name or "output_layer" in name:
        return pad(whole, (0, 0, 0, -len(whole) % TP)).chunk(TP)[rank].clone()
    if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return whole.chunk(TP, 1)[rank].clone()
    if name.endswith(("linear_fc1.weight", "linear_fc1.bias")) and ".layers." in name:
        gate, up = whole.chunk(2)
        return torch.cat([gate.chunk(TP)[rank], up.chunk(TP)[rank]])
    if name.endswith(("linear_qkv.weight", "linear_qkv.bias", "linear_fc1.weight")):
        return whole.chunk(TP)[rank].clone()
    if name.endswith("encoder.linear_fc1.bias"):
        return whole.chunk(TP)[rank].clone()
    return whole.clone()


def stage_of(name: str) -> tuple[int, str]:
    """The stage, of two, and the name in it: the second one ends the language model."""
    if name.startswith(LANGUAGE):
        layer, rest = name.removeprefix(LANGUAGE).split(".", 1)
        half = vl.LAYERS // 2
        return int(layer) // half, f"{LANGUAGE}{int(layer) % half}.{rest}"
    last = ("language_model.decoder.final_layernorm", "language_model.output_layer")
    return int(name.startswith(last)), name


@pytest.mark.parametrize("pp", [1, 2])
def test_both_towers_bit_for_bit(model: Path, tmp_path: Path, pp: int) -> None:
    whole = vl.by_hand(load_folder(model), "per-layer")
    for rank in range(TP):
        stages: list[dict[str, Tensor]] = [{} for _ in range(pp)]
        for name, tensor in whole.items():
            stage, local = stage_of(name) if pp > 1 else (0, name)
            stages[stage][local] = part(name, tensor, rank)
        for stage, state in enumerate(stages):
            path = tmp_path / "actor" / "model" / f"mp_rank_{rank:02d}_{stage:03d}" / "model.pt"
            path.parent.mkdir(parents=True)
            torch.save([state], path)
    result = verify_checkpoint(tmp_path / "actor", model)
    assert result.equal
    assert result.num_compared == len(open_checkpoint(model))
