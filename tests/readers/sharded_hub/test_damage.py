"""Shards that are missing, damaged, of another save, or made to be refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckpt_tool.common.errors import CheckpointError
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.readers.base import TANGLED, Checkpoint
from tests.support.backed import distinct
from tests.support.shards import cut_rows, shard_name, write_shard, write_shards

STATE = {"model.embed_tokens.weight": distinct((12, 4)), "a": distinct((6, 2))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "in", STATE)


def said(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Kind and message of every problem; nothing can be looked up while there is one."""
    for name in checkpoint.entries:
        with pytest.raises(CheckpointError):
            checkpoint[name]
    return [(problem.kind, problem.message) for problem in checkpoint.problems]


def test_a_rank_in_the_middle_is_missing(folder):
    (folder / shard_name(2)).unlink()
    assert said(open_checkpoint(folder)) == [
        ("missing-rank", "shard 2 of a sharded save is missing: here is up to shard 3"),
        ("coverage", "[2:4, 0:2] of [6, 2] is in no shard"),
        ("coverage", "[4:8, 0:4] of [12, 4] is in no shard"),
    ]


def test_a_last_shard_alone_is_no_small_model(folder):
    for number in (1, 2):
        (folder / shard_name(number)).unlink()
    kinds = [kind for kind, _ in said(open_checkpoint(folder))]
    assert kinds == ["missing-rank", "coverage", "coverage"]


@pytest.mark.parametrize("left", [1, 2])
@pytest.mark.parametrize("config", [{"vocab_size": 12}, {"text_config": {"vocab_size": 12}}])
def test_first_shards_alone_are_no_small_model(folder, left, config):
    (folder / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(folder).problems == ()
    for number in range(left + 1, 4):
        (folder / shard_name(number)).unlink()
    (problem,) = open_checkpoint(folder).problems
    assert (problem.kind, problem.where) == ("missing-rank", "model.embed_tokens.weight")
    assert problem.message.startswith(f"{4 * left} rows, and config.json says vocab_size 12: ")


def test_one_file_of_several_says_to_name_the_folder(folder):
    found = said(open_checkpoint(folder / shard_name(1)))
    message = f"one file of a sharded save of 3: name the folder, {folder}"
    assert found == [("missing-file", message)]
    assert len(open_checkpoint(folder / shard_name(3)).problems) == 3


def test_files_of_a_larger_save_are_among_them(folder):
    """A run that went on with fewer ranks leaves the last ones' files of before."""
    write_shard(folder / shard_name(4), cut_rows(STATE, 4, 3))
    message = "is in two pieces of different cuts: files of another save are among them"
    assert said(open_checkpoint(folder)) == [("coverage", f"[9:12, 0:4] {message}")]


def test_files_that_are_numbered_otherwise_are_of_another_save(folder):
    write_shard(folder / shard_name(4, 1, 2), {"b": (distinct((2,)), (0,))})
    assert said(open_checkpoint(folder)) == [
        ("contradiction", "shards -of-00001 and -of-00002 in one folder are of several saves:"
         " keep those of one"),
        ("missing-file", "no rank has a shard of file 2 of 2 (shard-*-model-*-of-00002)"),
    ]  # fmt: skip


def test_ranks_that_contradict_each_other(tmp_path):
    write_shard(tmp_path / shard_name(1), {"a": (distinct((2, 2)), (0, 0))})
    half = distinct((2, 2), torch.float16)
    write_shard(tmp_path / shard_name(2), {"a": (half, (2, 0))})
    write_shard(tmp_path / shard_name(3), {"a": (distinct((3,)), (4,))})
    found = said(open_checkpoint(tmp_path))
    two, three = (tmp_path / shard_name(number) for number in (2, 3))
    assert found == [
        ("contradiction", f"float16 of 2 dimensions in {two}, expected float32 of 2"),
        ("contradiction", f"float32 of 1 dimension in {three}, expected float32 of 2"),
    ]


def test_a_shard_number_of_nought(tmp_path):
    write_shard(tmp_path / shard_name(0), {"a": (distinct((2,)), (0,))})
    assert said(open_checkpoint(tmp_path)) == [
        ("metadata", "a shard has the number 0: they begin with 1")
    ]


PIECE = {"a": (distinct((2, 2)), (0, 0))}
INFO = {
    "absent": (None, "no DCP_SHARDING_INFO in its header"),
    "no JSON": ("{", "DCP_SHARDING_INFO: not JSON"),
    "a list": ("[]", "DCP_SHARDING_INFO: not a JSON object"),
    "deep": ("[" * 5000 + "]" * 5000, "DCP_SHARDING_INFO: not JSON"),
    "of others": ('{"a": {"saved_offsets": [0, 0]}, "b": 1}', "b is not in the file"),
    "of none": ("{}", "nothing about a, which is in the file"),
    "null": ('{"a": null}', "nothing about a"),
    "a number": ('{"a": 7}', "a: saved_offsets is 7, expected offsets"),
    "a text": ('{"a": {"saved_offsets": "00"}}', "saved_offsets is '00', expected offsets"),
    "none": ('{"a": {}}', "saved_offsets is None, expected offsets"),
    "truth": ('{"a": {"saved_offsets": [true, 0]}}', "expected offsets"),
    "floats": ('{"a": {"saved_offsets": [0.0, 0]}}', "expected offsets"),
    "negative": ('{"a": {"saved_offsets": [-2, 0]}}', "expected offsets"),
    "huge": ('{"a": {"saved_offsets": [1e400, 0]}}', "expected offsets"),
    "digits": ('{"a": {"saved_offsets": [%s, 0]}}' % ("9" * 6000), "thousands of digits"),
    "far away": ('{"a": {"saved_offsets": [281474976710655, 281474976710655]}}',
                 "more elements than files can have"),
    "too few": ('{"a": {"saved_offsets": [0]}}', "a: 1 offset for [2, 2], expected 2"),
    "too many": ('{"a": {"saved_offsets": [0, 0, 0]}}', "a: 3 offsets for [2, 2], expected 2"),
}  # fmt: skip


@pytest.mark.parametrize("kind", INFO)
def test_a_header_that_says_something_else(tmp_path, kind):
    info, message = INFO[kind]
    path = write_shard(tmp_path / shard_name(1), PIECE, DCP_SHARDING_INFO=info)
    ((found, text),) = said(open_checkpoint(tmp_path))
    assert found == "unreadable"
    assert message in text
    assert open_checkpoint(tmp_path).problems[0].where == str(path)
    assert len(text) < 250


@pytest.mark.parametrize("described", [{}, {"DCP_SHARDING_INFO": 5}, [], "text", None])
def test_a_header_whose_metadata_is_something_else(tmp_path, described):
    row = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps({"__metadata__": described, "a": row}).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(4)
    (tmp_path / shard_name(1)).write_bytes(content)
    ((kind, message),) = said(open_checkpoint(tmp_path))
    assert kind == "unreadable"
    assert message.startswith("no DCP_SHARDING_INFO in its header")


def test_a_tensor_that_reaches_further_than_files_do(tmp_path):
    """Each piece is somewhere that could be; together they promise 2**94 elements."""
    far = 2**47
    for number, offsets in enumerate([(far, 0), (0, far)], 1):
        write_shard(tmp_path / shard_name(number), {"a": (distinct((1, 1)), offsets)})
    ((kind, message),) = said(open_checkpoint(tmp_path))
    assert kind == "coverage"
    assert message.endswith("more elements than files can have")


def test_pieces_that_cut_across_each_other(tmp_path):
    """Both halves along each of 12 dimensions: nobody can say what they leave open."""
    for dim in range(12):
        for half in (0, 1):
            piece = torch.zeros([1 if d == dim else 2 for d in range(12)], dtype=torch.uint8)
            offsets = [half if d == dim else 0 for d in range(12)]
            write_shard(tmp_path / shard_name(1 + 2 * dim + half), {"a": (piece, offsets)})
    assert ("coverage", TANGLED) in said(open_checkpoint(tmp_path))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


def pickle_before_it(path: Path) -> None:
    """What torch's writer leaves where the state dict has a number: it cannot be read again."""
    path.write_bytes(b"PK\x03\x04" + bytes(60) + path.read_bytes())


def folder_in_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncate, empty, pointer, pickle_before_it, folder_in_place])
def test_a_damaged_file_is_named(folder, damage: Callable[[Path], None]):
    damage(folder / shard_name(2))
    found = open_checkpoint(folder).problems
    assert found[0].kind == "unreadable"
    assert found[0].where == str(folder / shard_name(2))


@pytest.mark.parametrize("text", ["", "[]", "{}", '"a"'])
def test_a_damaged_list_of_names_is_named(folder, text):
    (folder / ".hf_metadata").mkdir()
    path = folder / ".hf_metadata" / "fqn_to_file_index_mapping.json"
    path.write_text(text)
    (problem,) = open_checkpoint(folder).problems
    assert (problem.kind, problem.where) == ("index", str(path))


def test_a_whole_file_under_the_name_of_a_shard(tmp_path):
    save_file({"a": distinct((2, 2))}, tmp_path / shard_name(1), {"format": "pt"})
    ((kind, message),) = said(open_checkpoint(tmp_path))
    assert kind == "unreadable"
    assert "nothing says which part of each tensor this is" in message
