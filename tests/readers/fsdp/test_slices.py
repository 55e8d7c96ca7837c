"""Experts that were cut outside of their DTensors, as VeOmni does with expert parallelism."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ckpt_tool import inspect_checkpoint, merge_checkpoint, verify_checkpoint
from ckpt_tool.common.errors import CheckpointError, FormatError
from ckpt_tool.readers import Checkpoint, open_checkpoint
from ckpt_tool.readers.base import Holding, Mesh
from ckpt_tool.readers.fsdp.local import LocalTensor, Slice
from ckpt_tool.readers.fsdp.slices import join_slices, name_parallelism
from ckpt_tool.tensors.chunks import Region
from ckpt_tool.tensors.dtypes import BY_NAME
from ckpt_tool.tensors.geometry import Box
from tests.real.fsdp_reference import logits_of
from tests.support import crafted
from tests.support.crafted import archive, dtensor, dumps, floats, longs, placement
from tests.support.torchrun import run_ranks
from tests.support.versions import needs_transformers_5

GATE = "model.layers.0.mlp.experts.gate_up_proj"
LAYOUTS = ["veomni", "hsdp", "outermost", "nothing_left"]


def write_rank(
    folder: Path, rank: int, members: list[int], name: str = "ep_fsdp", rows: int = 2
) -> None:
    """A file of torch up to 2.9, whose meshes are tensors of ranks: a column of `rows` experts."""
    at = members.index(rank)
    values = [100 * rank + row for row in range(rows)]
    local = crafted.tensor(crafted.storage("0", rows), (rows, 1), (1, 1))
    ranks = crafted.tensor(crafted.storage("1", len(members), "LongStorage"), (len(members),), (1,))
    mesh = crafted.mesh(ranks, (name,), _coordinate_on_dim=[at])
    held = dtensor(local, (rows, len(members)), [placement("Shard", 1)], mesh)
    folder.mkdir(exist_ok=True)
    archive(
        folder / f"model_world_size_4_rank_{rank}.pt",
        dumps({"experts.weight": held}),
        {"0": floats(*values), "1": longs(*members)},
    )


def write_old(folder: Path, members: list[list[int]], name: str = "ep_fsdp") -> Checkpoint:
    for group in members:
        for rank in group:
            write_rank(folder, rank, group, name)
    return open_checkpoint(folder)


@pytest.mark.parametrize("members", [[[0, 1], [2, 3]], [[0, 2], [1, 3]]])
def test_meshes_of_old_torch_tell_by_their_ranks(tmp_path, members):
    found = write_old(tmp_path / "in", members)
    assert found.problems == ()
    rows = [[100 * rank + row for rank in group] for group in members for row in range(2)]
    assert found["experts.weight"].read().tolist() == rows
    assert found.entries["experts.weight"].placements == "ep Shard(0), Shard(1)"


def test_a_mesh_of_all_ranks_is_no_slice(tmp_path):
    found = write_old(tmp_path / "in", [[0, 1, 2, 3]])
    assert found.problems == ()
    assert found["experts.weight"].shape == (2, 4)
    assert found.entries["experts.weight"].placements == "Shard(1)"


def test_what_another_parallelism_cut_is_a_problem(tmp_path):
    (problem,) = write_old(tmp_path / "in", [[0, 1], [2, 3]], "emb_fsdp").problems
    assert (problem.kind, problem.where) == ("contradiction", "experts.weight")
    assert "cut into 2 by the mesh dimension 'emb' before FSDP sharded it" in problem.message


def test_slices_of_different_shapes_are_a_problem(tmp_path):
    write_old(tmp_path / "in", [[0, 1], [2, 3]])
    for rank in (2, 3):
        write_rank(tmp_path / "in", rank, [2, 3], rows=3)
    kinds = [problem.kind for problem in open_checkpoint(tmp_path / "in").problems]
    assert kinds == ["contradiction"] * 2


def test_a_missing_rank_is_the_problem(tmp_path):
    write_old(tmp_path / "in", [[0, 2], [1, 3]])
    (tmp_path / "in" / "model_world_size_4_rank_1.pt").unlink()
    assert [problem.kind for problem in open_checkpoint(tmp_path / "in").problems] == [
        "missing-rank"
    ]


def local(rows: int, part: Slice | None) -> LocalTensor:
    box = Box((0, 0), (rows, 3))
    holding = Holding(0, box, Region("f", 0, (3, 1)))
    return LocalTensor((rows, 3), BY_NAME["float32"], "plain", (holding,), None, part)


def test_where_each_slice_goes():
    found = [(rank, local(2, Slice("ep", key))) for rank, key in enumerate((7, 3, 7, 5))]
    joined = join_slices(found)
    assert [held.shape for _, held in joined] == [(6, 3)] * 4
    assert [held.holdings[0].box.offsets for _, held in joined] == [(4, 0), (0, 0), (4, 0), (2, 0)]
    assert [held.holdings[0].box.sizes for _, held in joined] == [(2, 3)] * 4


def test_what_a_mesh_counts_is_believed():
    joined = join_slices([(0, local(2, Slice("ep", 3, 4)))])
    assert joined[0][1].shape == (8, 3)
    assert joined[0][1].holdings[0].box.offsets == (6, 0)


def test_one_slice_is_the_whole():
    found = [(0, local(2, Slice("emb", 4))), (1, local(2, Slice("emb", 4)))]
    assert join_slices(found) == found
    found = [(0, local(2, None)), (1, local(2, None))]
    assert join_slices(found) == found


@pytest.mark.parametrize(
    "others",
    [None, Slice("ep", 1, 2), Slice("emb", 1)],
)
def test_meshes_that_do_not_agree_are_refused(others):
    with pytest.raises(FormatError, match="do not agree"):
        join_slices([(0, local(2, Slice("ep", 0))), (1, local(2, others))])


def test_a_scalar_cannot_be_cut():
    scalar = replace(local(1, Slice("ep", 0, 2)), shape=())
    with pytest.raises(FormatError, match="nothing says along which"):
        join_slices([(0, scalar)])


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("ep_fsdp",), "ep"),
        (("ep_replicate", "ep_fsdp"), "ep"),
        (("dp_shard",), None),
        (("fsdp",), None),
        (("_fsdp",), None),
        (("a_fsdp", "b_fsdp"), None),
        (None, None),
    ],
)
def test_what_the_names_of_a_mesh_say(names, found):
    assert name_parallelism(Mesh((2,) * len(names or "x"), names)) == found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3-MoE with 8 experts, saved by four ranks of real FSDP2 in each layout."""
    return run_ranks("tests.real.expert_rank", tmp_path_factory.mktemp("experts"), 4)


@pytest.mark.real
@needs_transformers_5
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_merges_to_the_model_that_was_cut(trained, layout, tmp_path):
    from transformers import AutoModelForCausalLM

    found = inspect_checkpoint([trained / layout])
    assert found.ok
    (gate,) = [entry for entry in found.entries if entry.name == GATE]
    assert gate.shape == (8, 24, 16)
    assert gate.placements.startswith("ep Shard(0), ")
    result = merge_checkpoint(trained / layout, tmp_path / "out")
    assert result.load_check is not None
    assert result.warnings == []
    assert verify_checkpoint(tmp_path / "out", trained / "whole").equal
    assert verify_checkpoint(trained / layout, trained / "whole").equal
    inputs = torch.arange(12).reshape(2, 6)
    expected = logits_of(AutoModelForCausalLM.from_pretrained(trained / "whole"), inputs)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits_of(model, inputs), expected)


@pytest.mark.real
@needs_transformers_5
def test_without_a_rank_nothing_is_written(trained, tmp_path):
    folder = shutil.copytree(trained / "veomni", tmp_path / "in")
    (folder / "model_world_size_4_rank_3.pt").unlink()
    with pytest.raises(CheckpointError, match="1 problem"):
        merge_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
