"""The hints of `verify_checkpoint` that take several tensors, ranks or all names to find."""

import shutil
from pathlib import Path

import pytest
import torch

from ckpt_tool.operations.verify import VerifyResult
from tests.support.merging import TINY, load_folder, values, write_rank
from tests.support.verifying import (
    Plant,
    Tensors,
    planted,
    read_block,
    the_mismatch,
    verify,
    write_block,
)

LAYER = "model.layers.0"
GATE, UP = f"{LAYER}.mlp.gate_proj.weight", f"{LAYER}.mlp.up_proj.weight"
NORM = "model.norm.weight"


def hints(result: VerifyResult) -> dict[str, str]:
    assert not result.missing
    assert not result.unexpected
    return {found.name: found.hint for found in result.mismatched}


# --- several tensors
def test_gate_and_up_swapped(plant: Plant) -> None:
    result = plant(lambda t: t.update({GATE: t[UP], UP: t[GATE]}))
    expected = "gate and up swapped: equal to the reference's "
    assert hints(result) == {GATE: expected + UP, UP: expected + GATE}


def test_layers_swapped(plant: Plant) -> None:
    other = UP.replace("layers.0", "layers.1")
    expected = "layer order changed: this is layer {} of the reference, not {}"
    result = plant(lambda t: t.update({other: t[UP], UP: t[other]}))
    assert hints(result) == {UP: expected.format(1, 0), other: expected.format(0, 1)}


def test_another_tensor(plant: Plant) -> None:
    a, b = "model.embed_tokens.weight", "lm_head.weight"
    result = plant(lambda t: t.update({a: t[b], b: t[a]}))
    assert hints(result) == {a: f"equal to the reference's {b}", b: f"equal to the reference's {a}"}


def test_experts_in_another_order(plant: Plant) -> None:
    experts = f"{LAYER}.mlp.experts"

    def rotate(tensors: Tensors) -> None:
        new = {
            f"{experts}.{n}.{kind}_proj.weight":
            tensors[f"{experts}.{(n + 1) % 5}.{kind}_proj.weight"]
            for n in range(5) for kind in ("gate", "up", "down")
        }  # fmt: skip
        tensors.update(new)

    said = "expert order changed: this is expert {} of the reference, not {}"
    assert hints(plant(rotate, "fsdp2_moe_w2")) == {
        f"{experts}.{n}.{kind}_proj.weight": said.format((n + 1) % 5, n)
        for n in range(5) for kind in ("gate", "up", "down")
    }  # fmt: skip


@pytest.mark.parametrize("case", ["fsdp2_gptoss_w2", "fsdp2_qwen3vlmoe_w2"])
def test_fused_experts_in_another_order(plant: Plant, case: str) -> None:
    def rotate(tensors: Tensors) -> None:
        (name,) = (n for n in tensors if n.endswith("layers.0.mlp.experts.down_proj"))
        tensors[name] = tensors[name].roll(1, 0)

    found = the_mismatch(plant(rotate, case))
    expected = "the 3 entries of dimension 0 are permuted (expert order changed)"
    assert found.hint == expected


def test_an_even_number_of_fused_experts_in_another_order(tmp_path: Path) -> None:
    name, experts = "model.layers.0.mlp.experts.down_proj", values(4, 6, 8)
    config = TINY | {"model_type": "gpt_oss"}
    right = write_rank(tmp_path / "right", {name: experts}, config)
    left = write_rank(tmp_path / "left", {name: experts.roll(2, 0)}, config)
    expected = "the 4 entries of dimension 0 are permuted (expert order changed)"
    assert the_mismatch(verify(left, right)).hint == expected


def test_vocabulary_padded(plant: Plant, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    names = ("lm_head.weight", "model.embed_tokens.weight")

    def pad(tensors: Tensors) -> None:
        for name in names:
            tensors[name] = torch.cat([tensors[name], torch.zeros(31, 32)])

    expected = "vocabulary padded: 31 more rows in the {}, the first 97 are equal"
    assert hints(plant(pad)) == dict.fromkeys(names, expected.format("checkpoint"))
    case = checkpoints["fsdp2_w2"]
    reverse = verify(case, planted(case / "reference", tmp_path / "x", pad))
    assert hints(reverse) == dict.fromkeys(names, expected.format("reference"))
    assert {found.kind for found in reverse.mismatched} == {"shape"}


# --- ranks
def test_one_rank_is_from_another_step(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    actor, reference = tmp_path / "actor", checkpoints["fsdp2_w3"] / "reference"
    shutil.copytree(checkpoints["fsdp2_w3"] / "actor", actor)
    stale = [name for name in load_folder(reference) if name.endswith("mlp.up_proj.weight")]
    for name in stale:
        block = read_block(actor, name, 1)
        write_block(actor, name, 1, block + torch.linspace(-1, 1, block.numel()).view_as(block))
    result = verify(actor, reference)
    assert hints(result) == dict.fromkeys(
        stale, "only rank 1's shard differs: stale, or from another step"
    )
    for found in result.mismatched:
        assert (found.rank, Path(found.source).name) == (1, "model_world_size_3_rank_1.pt")


def test_some_ranks_are_from_another_step(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    actor = tmp_path / "actor"
    shutil.copytree(checkpoints["fsdp2_w3"] / "actor", actor)
    for rank in (0, 2):
        write_block(actor, UP, rank, read_block(actor, UP, rank).flip(0) + 1)
    found = the_mismatch(verify(actor, checkpoints["fsdp2_w3"] / "reference"))
    assert found.hint == "only the shards of ranks 0, 2 differ, the others are equal"


def test_a_shard_cut_at_the_wrong_row(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    actor, reference = tmp_path / "actor", checkpoints["fsdp2_w3"] / "reference"
    shutil.copytree(checkpoints["fsdp2_w3"] / "actor", actor)
    write_block(actor, UP, 1, load_folder(reference)[UP][16:33])
    found = the_mismatch(verify(actor, reference))
    expected = "shifted, its rows 17:34 are rows 16:33 of the reference"
    assert found.hint == f"only rank 1's shard differs: {expected}"


# --- names
def test_a_prefix_on_one_side(plant: Plant, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    def prefix(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[f"module.{name}"] = tensors.pop(name)

    said = (
        "27 names differ by the prefix 'module.', which the {} has: without it 27 of 27 tensors"
        " are equal"
    )
    result = plant(prefix)
    assert (len(result.missing), len(result.unexpected)) == (27, 27)
    assert result.names_hint == said.format("checkpoint")
    case = checkpoints["fsdp2_w2"]
    reverse = verify(case, planted(case / "reference", tmp_path / "x", prefix))
    assert reverse.names_hint == said.format("reference")


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.embed_tokens.weight", NORM, UP])
def test_a_prefix_is_seen_though_a_tensor_is_missing(plant: Plant, lost: str) -> None:
    def prefix(tensors: Tensors) -> None:
        del tensors[lost]
        for name in list(tensors):
            tensors[f"module.{name}"] = tensors.pop(name)

    assert "26 names differ by the prefix 'module.'" in plant(prefix).names_hint
