"""`open_checkpoint`: any known folder or file, without torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckpt_tool.common.errors import UnknownFormatError, UsageError
from ckpt_tool.readers import open_checkpoint
from tests.support.backed import distinct, same

PROJECT = Path(__file__).parents[2]


def imported(code: str, *arguments: object) -> set[str]:
    """Which of the heavy packages a fresh process has imported after running `code`."""
    program = f"import sys\n{code}\nprint(*sys.modules, sep='\\n')"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    return set(done.stdout.split()) & {"torch", "transformers", "safetensors", "accelerate"}


OPEN = """
from ckpt_tool.readers import open_checkpoint
for path in sys.argv[1:]:
    checkpoint = open_checkpoint(path)
    assert checkpoint.problems == ()
    assert [checkpoint[name].nbytes for name in checkpoint]
"""

BLOCKS = """
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import BFLOAT16
with FileTable() as files:
    for path in sys.argv[1:]:
        for tensor in open_checkpoint(path).values():
            if tensor.dtype.name == "float32":
                buffer = memoryview(bytearray(2 * tensor.numel))
                BlockReader(files).read(tensor.to(BFLOAT16), 0, tensor.numel, buffer)
"""


def test_opening_and_reading_blocks_imports_no_torch(checkpoints, tmp_path):
    torch.save({"a": distinct((2,))}, tmp_path / "pytorch_model.bin")
    paths = [
        checkpoints["fsdp2_w2"] / "actor",
        checkpoints["fsdp1_nomesh_w3"] / "actor",
        checkpoints["fsdp2_w2"] / "actor" / "model_world_size_2_rank_0.pt",
        checkpoints["fsdp2_w2"] / "reference",
        tmp_path,
    ]
    assert imported(OPEN + BLOCKS, *paths) == set()


def test_nothing_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        open_checkpoint(tmp_path / "gone")


@pytest.mark.parametrize("name", ["readme.md", "optim_world_size_2_rank_0.pt", "model.gguf"])
def test_an_unknown_folder_says_what_was_expected(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(UnknownFormatError, match="known format") as caught:
        open_checkpoint(tmp_path)
    assert any("model_world_size" in files for files in caught.value.expected)


def test_paths_may_be_text(checkpoints):
    path = checkpoints["fsdp2_w2"] / "actor"
    assert open_checkpoint(str(path)).path == path


def test_rank_files_come_before_the_hugging_face_files_beside_them(checkpoints):
    checkpoint = open_checkpoint(checkpoints["fsdp2_w2"] / "actor")
    assert checkpoint.format == "fsdp"


def test_a_single_rank_file_shows_its_own_part(checkpoints):
    folder = checkpoints["fsdp2_w3"]
    whole = load_file(folder / "raw_state_dict.safetensors")
    parts = []
    for rank in range(3):
        path = folder / "actor" / f"model_world_size_3_rank_{rank}.pt"
        checkpoint = open_checkpoint(path)
        assert (checkpoint.format, checkpoint.world_size) == ("fsdp-rank", 3)
        assert checkpoint.problems == ()
        assert [file.rank for file in checkpoint.files] == [rank]
        assert set(checkpoint) == set(whole)
        parts.append(checkpoint["lm_head.weight"].read())
    assert [len(part) for part in parts] == [33, 33, 31]
    assert same(torch.cat(parts), whole["lm_head.weight"])
    text = checkpoint.entries["lm_head.weight"].placements
    assert text == "Shard(0), [66:97, 0:32] of [97, 32]"


def test_a_single_rank_of_a_sharded_tensor_checkpoint(checkpoints):
    path = checkpoints["fsdp1_nomesh_w3"] / "actor" / "model_world_size_3_rank_1.pt"
    checkpoint = open_checkpoint(path)
    assert checkpoint.entries["lm_head.weight"].shape == (33, 32)


def test_any_torch_file(tmp_path):
    state = {"a": distinct((4, 2)).t(), "b": torch.tensor(2.0)}
    torch.save(state, tmp_path / "weights.pt")
    checkpoint = open_checkpoint(tmp_path / "weights.pt")
    assert (checkpoint.format, checkpoint.world_size) == ("torch", None)
    for name, value in state.items():
        assert same(checkpoint[name].read(), value.contiguous())


def test_a_checkpoint_is_a_mapping_in_file_order(tmp_path):
    torch.save({"z": distinct((2,)), "a": distinct((3,))}, tmp_path / "t.pt")
    checkpoint = open_checkpoint(tmp_path / "t.pt")
    assert list(checkpoint) == ["z", "a"]
    assert len(checkpoint) == 2
    assert "a" in checkpoint
    assert checkpoint["z"] is checkpoint["z"]
    with pytest.raises(KeyError):
        checkpoint["gone"]


def test_entries_count_elements_and_bytes(tmp_path):
    save_file({"a": distinct((4, 3), torch.bfloat16)}, tmp_path / "t.safetensors")
    entry = open_checkpoint(tmp_path / "t.safetensors").entries["a"]
    assert (entry.numel, entry.nbytes) == (12, 24)
