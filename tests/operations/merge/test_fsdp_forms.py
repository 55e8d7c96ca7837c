"""Merges under torchrun: every rank writes its share, and the result is that of one process."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ckpt_tool import MergeOptions, WriteOptions, merge_fsdp, merge_megatron
from ckpt_tool.common.progress import NoProgress
from tests.common.test_parallel import assert_same_folders, run_together
from tests.support import megatron

SMALL = "100KB"


class StopsAfter(NoProgress):
    """Progress that interrupts the work when so many bytes are written."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def start(self, what: str, total: int | None, unit: str = "bytes") -> None:
        self.unit = unit

    def advance(self, amount: int) -> None:
        if self.unit != "bytes":
            return
        self.left -= amount
        if self.left < 0:
            raise KeyboardInterrupt


def succeeded(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_three_ranks_go_on_where_one_process_stopped(megatron_cases, tmp_path):
    source = megatron.saved(megatron_cases, "qwen3_moe", "ep2")
    config = megatron.hf(megatron_cases, "qwen3_moe")
    options = MergeOptions(config=config, max_shard_size=SMALL)
    merge_megatron(source, tmp_path / "one", options)
    with pytest.raises(KeyboardInterrupt, match=r"`write\.resume=True`"):
        merge_megatron(source, tmp_path / "three", options, StopsAfter(300_000))
    (partial,) = tmp_path.glob(".three*-partial")
    kept = {path.name: path.stat().st_ino for path in partial.glob("*.safetensors")}
    arguments = ["--config", str(config), "--max-shard-size", SMALL, "--resume", "--verify"]
    out = tmp_path / "three"
    result = succeeded(
        run_together("merge", "megatron", str(source), str(out), *arguments, "--json", ranks=3)
    )
    assert result["verified"] is True
    assert len(result["files"]) > 5
    assert_same_folders(tmp_path / "one", out)
    again = {path.name: path.stat().st_ino for path in out.glob("*.safetensors")}
    assert any(again[name] == number for name, number in kept.items())


def test_two_ranks_prove_replicas_and_write_a_single_file(checkpoints, tmp_path):
    source = checkpoints["fsdp1_hsdp_w4"]
    write = WriteOptions(fsync=False)
    merge_fsdp([source], tmp_path / "one", MergeOptions(check_replicas=True, write=write))
    out = tmp_path / "two"
    result = succeeded(
        run_together(
            "merge", "fsdp", str(source), str(out), "--check-replicas", "--verify", "--json"
        )
    )
    assert [Path(file["path"]).name for file in result["files"]] == ["model.safetensors"]
    assert_same_folders(tmp_path / "one", out)


def test_what_one_rank_refuses_ends_all(checkpoints, tmp_path):
    source = shutil.copytree(checkpoints["fsdp2_w3"] / "dcp", tmp_path / "in")
    next(source.glob("__2_*.distcp")).unlink()
    done = run_together("merge", "dcp", str(source), str(tmp_path / "out"), "--config", "none")
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.count("problem in this checkpoint") + done.stderr.count("problems in") == 1
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
