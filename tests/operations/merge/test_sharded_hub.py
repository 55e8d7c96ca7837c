"""Shards that ranks saved of a Hugging Face model: merged, verified, and never a smaller model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_tool import (
    MergeOptions,
    NameOptions,
    WriteOptions,
    merge_checkpoint,
    merge_dcp,
    verify_checkpoint,
)
from ckpt_tool.common.errors import CheckpointError, CkptError, MappingError, UsageError
from tests.support.merging import assert_same, load_folder
from tests.support.shards import cut_rows, shard_name, write_shard, write_shards
from tests.support.tiny_llama import LLAMA, make_llama
from tests.support.versions import needs_transformers_5

FIXTURES = Path(__file__).parents[2] / "fixtures"
KINDS = ["dense", "moe"]


def fixture(kind: str) -> Path:
    return FIXTURES / f"transformers5.24_sharded_{kind}"


def merge(source: Path, out: Path, **more) -> dict[str, torch.Tensor]:
    merge_dcp(source, out, MergeOptions(**{"write": WriteOptions(fsync=False), **more}))
    return load_folder(out)


@needs_transformers_5
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_is_what_transformers_saves_of_it(tmp_path, kind):
    merged = merge(fixture(kind) / "checkpoint", tmp_path / "out")
    assert_same(merged, load_file(fixture(kind) / "reference.safetensors"))


@needs_transformers_5
@pytest.mark.parametrize("kind", KINDS)
def test_verify_takes_shards_on_either_side(tmp_path, kind):
    checkpoint, model = fixture(kind) / "checkpoint", tmp_path / "model"
    model.mkdir()
    shutil.copy(fixture(kind) / "reference.safetensors", model / "model.safetensors")
    shutil.copy(checkpoint / "config.json", model)
    assert verify_checkpoint(checkpoint, model).exact
    assert verify_checkpoint(model, checkpoint).exact


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A llama's, of three ranks, with its config."""
    folder = write_shards(tmp_path / "in", make_llama(), 3)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def test_the_format_is_recognised(shards, tmp_path):
    options = MergeOptions(write=WriteOptions(fsync=False))
    result = merge_checkpoint(shards, tmp_path / "out", options)
    assert result.format == "sharded-hub"
    assert_same(load_folder(tmp_path / "out"), make_llama())


@pytest.mark.parametrize("left", [1, 2])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_first_shards_alone_are_refused(shards, tmp_path, left, elsewhere):
    """With the config beside them by its number of rows, and with one elsewhere by every shape."""
    for number in range(left + 1, 4):
        (shards / shard_name(number)).unlink()
    config = None
    if elsewhere:
        config = tmp_path / "config"
        config.mkdir()
        (shards / "config.json").rename(config / "config.json")
    with pytest.raises(CkptError) as refused:
        merge(shards, tmp_path / "out", config=config)
    if elsewhere:
        assert isinstance(refused.value, MappingError)
        assert "model.norm.weight" in " ".join(refused.value.names)
    else:
        assert isinstance(refused.value, CheckpointError)
        assert [each.kind for each in refused.value.problems] == ["missing-rank"]
    assert not (tmp_path / "out").exists()


def test_nested_names_and_state_of_training(tmp_path):
    state = {f"app.model.{name}": tensor for name, tensor in make_llama().items()}
    state["optimizer.state.a.exp_avg"] = torch.ones(4, 2)
    folder = write_shards(tmp_path / "in", state, 2)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert_same(merge(folder, tmp_path / "out"), make_llama())


def test_names_that_are_said_are_renamed(tmp_path):
    names = NameOptions(rename=("embed_tokenz=embed_tokens",))
    state = {name.replace("_tokens", "_tokenz"): each for name, each in make_llama().items()}
    folder = write_shards(tmp_path / "in", state, 2)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert_same(merge(folder, tmp_path / "out", names=names), make_llama())


@pytest.mark.parametrize("differ", [False, True])
def test_replicas_are_compared(shards, tmp_path, differ):
    again = {"model.norm.weight": cut_rows(make_llama(), 3, 0)["model.norm.weight"]}
    if differ:
        values, at = again["model.norm.weight"]
        again["model.norm.weight"] = (values + 1, at)
    write_shard(shards / shard_name(4), again)
    if not differ:
        assert_same(merge(shards, tmp_path / "out"), make_llama())
        return
    with pytest.raises(CheckpointError) as refused:
        merge(shards, tmp_path / "out")
    (problem,) = refused.value.problems
    assert (problem.kind, problem.where) == ("replica", "model.norm.weight")
    assert problem.message.startswith("rank 3 differs from rank 0")


def test_a_model_that_is_whole_says_so(tmp_path):
    save_file(make_llama(), tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CkptError, match=r"expected: .*sharded Hugging Face model"):
        merge(tmp_path, tmp_path / "out")


def test_shards_are_no_base_before_they_are_merged(shards, tmp_path):
    with pytest.raises(UsageError, match="shards of a model, as its ranks saved them") as refused:
        merge(shards, tmp_path / "out", fill_from=shards)
    assert refused.value.hint.endswith(f"ckpt merge dcp {shards} OUT")
