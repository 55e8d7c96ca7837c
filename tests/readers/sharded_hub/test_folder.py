"""Shards that transformers' and torch's own ranks saved, and such as they may lie."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import Replicate, Shard

from ckpt_tool.readers import list_checkpoints, open_checkpoint
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.readers.sharded_hub.folder import locate_sharded_hub, open_sharded_hub
from tests.support.backed import distinct, same
from tests.support.shards import save_on_ranks, shard_name, write_shard, write_shards
from tests.support.versions import TORCH

FIXTURES = Path(__file__).parents[2] / "fixtures"
STATE = {
    "model.embed_tokens.weight": distinct((16, 4)),
    "matrix": distinct((5, 6)),
    "short": distinct((2,)),
    "cube": distinct((4, 3, 2), torch.bfloat16),
}
#: torch 2.7 saves no shards, 2.8 none with what says where they belong.
needs_writer = pytest.mark.skipif(TORCH < (2, 9), reason="torch writes no such shards yet")


def assert_reads(checkpoint: Checkpoint, state: dict[str, torch.Tensor]) -> None:
    assert checkpoint.problems == ()
    assert checkpoint.keys() == state.keys()
    assert [name for name in state if not same(checkpoint[name].read(), state[name])] == []


def test_what_transformers_saved_is_the_model():
    """Names are those in memory; what is not stacked or repeated there is on the Hub the same."""
    folder = FIXTURES / "transformers5.24_sharded_dense"
    found = open_checkpoint(folder / "checkpoint")
    reference = load_file(folder / "reference.safetensors")
    assert found.format == "sharded-hub"
    assert_reads(found, reference | {"lm_head.weight": reference["model.embed_tokens.weight"]})
    assert [file.rank for file in found.files] == [0, 1, 2]
    assert {entry.placements for entry in found.entries.values()} == {"3 blocks"}


@needs_writer
@pytest.mark.slow
def test_what_torch_saved_is_read(tmp_path):
    """Cut by rows and columns, on a grid, replicas; parts without elements; two files per rank."""
    how = {
        "model.embed_tokens.weight": [Shard(0), Shard(0)],
        "matrix": [Shard(0), Shard(1)],
        "short": [Replicate(), Shard(0)],
        "cube": [Replicate(), Replicate()],
    }
    state = STATE | {"plain": distinct((3, 2)), "scalar": distinct(()), "none": torch.empty(0, 3)}
    parts = {name: 1 + number % 2 for number, name in enumerate(state)}
    folder = save_on_ranks(
        tmp_path / "saved", state, (3, 2), how, fqn_to_index_mapping=parts
    )  # fmt: skip
    assert shard_name(6, 1, 2) in {path.name for path in folder.iterdir()}
    assert_reads(open_checkpoint(folder), state)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_rows_are_joined(tmp_path, world_size):
    """Of 7 ranks most have nothing of the short ones, and say where that would begin."""
    folder = write_shards(tmp_path / "in", STATE, world_size)
    assert_reads(open_checkpoint(folder), STATE)


def test_replicas_are_held_by_both(tmp_path):
    pieces = {"a": (STATE["matrix"], (0, 0))}
    for number in (1, 2):
        write_shard(tmp_path / shard_name(number), pieces)
    found = open_checkpoint(tmp_path)
    assert_reads(found, {"a": STATE["matrix"]})
    entry = found.entries["a"]
    assert entry.placements == "whole"
    ((owner, other),) = entry.replicas()
    assert (owner.rank, other.rank, other.replicated) == (0, 1, False)


@pytest.mark.parametrize(
    "below", ["", "model", "policy/weights", "actor", "checkpoint-5", "epoch_0_step_2/model"]
)
def test_it_is_found_below(tmp_path, below):
    folder = write_shards(tmp_path / below, STATE)
    found = open_checkpoint(tmp_path)
    assert (found.format, found.path) == ("sharded-hub", folder)
    (place,) = list_checkpoints(tmp_path).places
    assert place.format.merge_command == "dcp"


def test_config_of_automodel_is_found(tmp_path):
    folder = write_shards(tmp_path / "model", STATE)
    (folder / ".hf_metadata").mkdir()
    (folder / ".hf_metadata" / "config.json").write_text("{}")
    assert open_checkpoint(tmp_path).side_files == folder / ".hf_metadata"


def test_shards_win_over_a_model_beside_them(tmp_path):
    """As in transformers; torch's consolidation leaves such a file in the folder itself."""
    folder = write_shards(tmp_path, STATE)
    write_shard(tmp_path / "model-00001-of-00001.safetensors", {"other": (distinct((2,)), (0,))})
    assert_reads(open_checkpoint(folder), STATE)


def test_a_model_above_its_shards_is_a_model(tmp_path):
    """torch's writer puts shards into a folder of their own where it consolidates them."""
    write_shards(tmp_path / "sharded", STATE)
    write_shard(tmp_path / "model-00001-of-00001.safetensors", {"other": (distinct((2,)), (0,))})
    assert open_checkpoint(tmp_path).format == "huggingface"
    assert_reads(open_checkpoint(tmp_path / "sharded"), STATE)


def test_the_only_shard_is_a_checkpoint_of_one_rank(tmp_path):
    file = write_shards(tmp_path, STATE, 1) / shard_name(1)
    assert locate_sharded_hub(file) == file
    assert_reads(open_checkpoint(file), STATE)


def test_what_is_not_wanted_is_left_alone(tmp_path):
    folder = write_shards(tmp_path, STATE | {"optimizer.state": distinct((4,))})
    (folder / shard_name(2)).unlink()
    found = open_sharded_hub(folder, lambda name: name == "short")
    assert list(found) == ["short"]
    assert found.left_out.keys() == {*STATE, "optimizer.state"} - {"short"}
    assert {problem.where for problem in found.problems} == {str(folder), "short"}


def test_a_config_that_promises_as_many_rows_is_content(tmp_path):
    folder = write_shards(tmp_path, STATE)
    for config in ({"vocab_size": 16}, {"text_config": {"vocab_size": 12}}, {"vocab_size": "many"}):
        (folder / "config.json").write_text(json.dumps(config))
        assert open_checkpoint(folder).problems == ()
    (folder / "config.json").write_text("no JSON")
    assert open_checkpoint(folder).problems == ()


def test_automodels_list_of_names_is_content_with_all_of_them(tmp_path):
    """Files of which no rank has a part had tensors that the model no longer has."""
    folder = tmp_path / "model"
    write_shard(folder / shard_name(1, 2, 4), {"a": (distinct((2,)), (0,))})
    assert [problem.kind for problem in open_checkpoint(folder).problems] == ["missing-file"]
    (folder / ".hf_metadata").mkdir()
    mapping = folder / ".hf_metadata" / "fqn_to_file_index_mapping.json"
    mapping.write_text('{"a": 2}')
    assert open_checkpoint(folder).problems == ()
    mapping.write_text('{"a": 2, "gone": 3}')
    (problem,) = open_checkpoint(folder).problems
    assert (problem.kind, problem.where) == ("missing-tensor", "gone")


def test_a_link_to_shards_is_followed(tmp_path):
    folder = write_shards(tmp_path / "in", STATE)
    (tmp_path / "out").mkdir()
    for file in folder.iterdir():
        (tmp_path / "out" / file.name).symlink_to(file)
    assert_reads(open_checkpoint(tmp_path / "out"), STATE)
    shutil.rmtree(folder)
    kinds = {problem.kind for problem in open_checkpoint(tmp_path / "out").problems}
    assert kinds == {"unreadable"}


@needs_writer
def test_it_is_what_torch_consolidates(tmp_path):
    """torch's own way to a whole model, which keeps names as they are in memory."""
    from torch.distributed.checkpoint._consolidate_hf_safetensors import (
        consolidate_safetensors_files,
    )

    source = FIXTURES / "transformers5.24_sharded_moe" / "checkpoint"
    found = open_checkpoint(source)
    consolidate_safetensors_files(
        input_dir=str(source),
        output_dir=str(tmp_path),
        fqn_to_index_mapping=dict.fromkeys(found, 1),
    )
    (file,) = tmp_path.glob("*.safetensors")
    assert_reads(found, load_file(file))
