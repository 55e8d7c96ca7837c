"""What all readers share: problems collected, files as they were when they were opened."""

import builtins
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from ckpt_tool.common.errors import FormatError, Problem, UnsafeContentError
from ckpt_tool.readers import open_checkpoint
from ckpt_tool.readers.base import ShardFile, collect, name_file
from ckpt_tool.tensors.geometry import Box
from tests.support.backed import distinct

FIXTURES = Path(__file__).parents[1] / "fixtures"


def collected(error: Exception, block: Box | None = None) -> list[Problem]:
    problems: list[Problem] = []
    with collect(problems, "unreadable", Path("a.pt"), block):
        raise error
    return problems


@pytest.mark.parametrize(
    ("error", "block", "said"),
    [
        (FormatError("cut short"), None, "cut short"),
        (FormatError("cut short", path="a.pt"), None, "cut short"),  # `where` says the path already
        (FormatError("cut short", path="b.pt"), None, "b.pt: cut short"),
        (FormatError("cut short", path="b.pt"), Box((1,), (2,)), "block [1:3]: b.pt: cut short"),
        (OSError(5, "Input/output error", "a.pt"), None, "[Errno 5] Input/output error: 'a.pt'"),
    ],
)
def test_what_cannot_be_read_becomes_a_problem(error, block, said):
    assert collected(error, block) == [Problem("unreadable", "a.pt", said)]


@pytest.mark.parametrize("error", [UnsafeContentError("os.system"), ValueError("ours")])
def test_code_in_a_pickle_and_mistakes_of_ours_are_raised(error):
    with pytest.raises(type(error)):
        collected(error)


def test_without_an_error_there_is_no_problem():
    problems: list[Problem] = []
    with collect(problems, "unreadable", "a.pt"):
        pass
    assert problems == []


@pytest.mark.parametrize(("own", "said"), [("", "outer: no"), ("inner", "inner: no")])
def test_a_file_is_named_where_none_was(own, said):
    with pytest.raises(FormatError, match=f"^{said}$"), name_file("outer"):
        raise FormatError("no", path=own)


def test_size_and_time_of_a_file_are_taken_together(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"12345")
    os.utime(path, ns=(7, 1_234_567_890_123_456_789))
    assert ShardFile.stat(path, 3) == ShardFile(str(path), 5, 3, None, 1_234_567_890_123_456_789)
    assert ShardFile.stat(path, None, {"tp": 1}).parallel == {"tp": 1}


def test_a_link_to_nowhere_has_no_size(tmp_path):
    (tmp_path / "a.pt").symlink_to(tmp_path / "gone")
    assert ShardFile.stat(tmp_path / "a.pt") == ShardFile(str(tmp_path / "a.pt"), 0, None)


def write_ranks(folder: Path) -> None:
    torch.save({"a": distinct((2,))}, folder / "model_world_size_1_rank_0.pt")


def write_model(folder: Path) -> None:
    save_file({"a": distinct((2,))}, folder / "model.safetensors")


def write_bin(folder: Path) -> None:
    torch.save({"a": distinct((2,))}, folder / "pytorch_model.bin")


def write_dcp(folder: Path) -> None:
    dcp.save({"a": distinct((2,))}, checkpoint_id=folder)


def write_megatron(folder: Path) -> None:
    source = FIXTURES / "mcore0.11_ranks" / "checkpoint" / "iter_0000007"
    shutil.copytree(source, folder, dirs_exist_ok=True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    ("write", "format_name"),
    [
        (write_ranks, "fsdp"),
        (write_model, "huggingface"),
        (write_bin, "huggingface"),
        (write_dcp, "dcp"),
        (write_megatron, "megatron-ranks"),
    ],
)
def test_files_are_as_they_were_before_they_were_read(tmp_path, monkeypatch, write, format_name):
    write(tmp_path)
    weights = {path for path in tmp_path.rglob("*") if path.is_file() and path.name[0] != "."}
    for path in weights:
        os.utime(path, ns=(1, 1_000))
    changed = set()

    def changing(real):
        def opened(path, *arguments, **options):
            if isinstance(path, str | Path) and Path(path) in weights:
                changed.add(Path(path))
                os.utime(path, ns=(2, 2_000))
            return real(path, *arguments, **options)

        return opened

    monkeypatch.setattr(os, "open", changing(os.open))
    monkeypatch.setattr(builtins, "open", changing(builtins.open))
    found = open_checkpoint(tmp_path)
    assert (found.format, found.problems) == (format_name, ())
    assert changed == weights == {Path(file.path) for file in found.files}
    assert {file.mtime_ns for file in found.files} == {1_000}
    assert {path.stat().st_mtime_ns for path in weights} == {2_000}


def test_a_single_file_is_as_it_was(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"a": distinct((2,))}, path)
    stat = path.stat()
    expected = ShardFile(str(path), stat.st_size, None, None, stat.st_mtime_ns)
    assert open_checkpoint(path).files == (expected,)
